"""The architectures of the zoo a second time, in plain JAX: build(width, key) -> (f, params) of each."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import erf


def draw(key, **shapes):
    keys = jax.random.split(key, len(shapes))
    return {k: jax.random.normal(q, s) for (k, s), q in zip(shapes.items(), keys)}


relu = jax.nn.relu


def dense(p, name, x, fan, var=2.0):
    return x @ p["W" + name].T * (var / fan) ** 0.5 + p["b" + name] * 0.1**0.5


def read(p, h, var=1.0, name="v"):
    return h @ p[name] * (var / h.shape[-1]) ** 0.5


def mlp(n, key):
    p = draw(key, W1=(n, 4), b1=(n,), W2=(n, n), b2=(n,), W3=(n, n), b3=(n,), v=(n,))

    def f(p, x):
        h = relu(dense(p, "1", x, 4))
        h = relu(dense(p, "2", h, n))
        h = relu(dense(p, "3", h, n))
        return read(p, h)

    return f, p


def mlp_tied(n, key):
    p = draw(key, W=(n, n), b=(n,), U=(n, 4), v=(n,))

    def f(p, x):
        b = p["b"] * 0.1**0.5
        h = x @ p["U"].T / 2 + b
        for _ in range(3):
            h = erf(h) @ p["W"].T * (1.5 / n) ** 0.5 + b
        return read(p, erf(h))

    return f, p


def mlp_two_widths(n, key):
    m = 2 * n
    p = draw(key, W1=(m, 4), b1=(m,), W2=(n, m), b2=(n,), W3=(m, n), b3=(m,), v=(m,))

    def f(p, x):
        return read(p, relu(dense(p, "3", relu(dense(p, "2", relu(dense(p, "1", x, 4)), m)), n)))

    return f, p


def resnet_mlp(n, key):
    p = draw(
        key,
        U=(n, 4),
        **{f"{k}{l}": (n, n) for l in (1, 2, 3) for k in "VW"},
        **{f"b{l}": (n,) for l in (1, 2, 3)},
        v=(n,),
    )

    def f(p, x):
        h = x @ p["U"].T / 2
        for l in "123":
            h = h + 0.5 * (relu(h @ p["V" + l].T / n**0.5 + p["b" + l] * 0.1**0.5) @ p["W" + l].T / n**0.5)
        return read(p, h)

    return f, p


def autoencoder_tied(n, key):
    m = 2 * n
    p = draw(key, U=(m, 4), b=(m,), W=(n, m), v=(m,))

    def f(p, x):
        e = jnp.tanh(x @ p["U"].T / 2 + p["b"] * 0.1**0.5)
        z = jnp.tanh(e @ p["W"].T * (1.5 / m) ** 0.5)
        return read(p, jnp.tanh(z @ p["W"] * (1.5 / m) ** 0.5))

    return f, p


def ln(x):
    c = x - x.mean(-1, keepdims=True)
    return c / jnp.sqrt((c * c).mean(-1, keepdims=True))


def rms(x):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True))


def normed(norm):
    def build(n, key):
        p = draw(key, W1=(n, 4), b1=(n,), W2=(n, n), b2=(n,), W3=(n, n), b3=(n,), v=(n,))

        def f(p, x):
            h = relu(norm(dense(p, "1", x, 4)))
            h = relu(norm(dense(p, "2", h, n)))
            h = relu(norm(dense(p, "3", h, n)))
            return read(p, h)

        return f, p

    return build


def swiglu(n, key):
    p = draw(key, W1g=(n, 4), b1g=(n,), W1v=(n, 4), W2g=(n, n), b2g=(n,), W2v=(n, n), v=(n,))

    def f(p, x):
        h = x
        for l, fan in (("1", 4), ("2", n)):
            h = jax.nn.silu(dense(p, l + "g", h, fan)) * (h @ p[f"W{l}v"].T * (2 / fan) ** 0.5)
        return read(p, h)

    return f, p


def rnn_(fn, kind):
    def build(n, key):
        p = draw(key, W=(n, n), U=(n, 4), b=(n,), v=(n,))

        def f(p, x):
            def step(s, xt):
                s = fn(s @ p["W"].T * (1.2 / n) ** 0.5 + xt @ p["U"].T / 2 + p["b"] * 0.1**0.5)
                return s, s

            s, ys = lax.scan(step, jnp.zeros((x.shape[0], n)), jnp.swapaxes(x, 0, 1))
            return read(p, s if kind == "last" else ys.mean(0))

        return f, p

    return build


def rnn_bidirectional(fn):
    def build(n, key):
        p = draw(key, W=(n, n), U=(n, 4), b=(n,), Wr=(n, n), Ur=(n, 4), br=(n,), v=(n,), w=(n,))

        def states(p, x, r):
            def step(s, xt):
                s = fn(s @ p["W" + r].T * (1.2 / n) ** 0.5 + xt @ p["U" + r].T / 2 + p["b" + r] * 0.1**0.5)
                return s, s

            return lax.scan(step, jnp.zeros((x.shape[0], n)), jnp.swapaxes(x, 0, 1), reverse=bool(r))[1]

        def f(p, x):
            return read(p, states(p, x, "").mean(0), 0.5) + read(p, states(p, x, "r").mean(0), 0.5, "w")

        return f, p

    return build


def gates(names, n, key):
    return draw(
        key, **{f"{a}{k}": (n, 4) if a == "U" else (n, n) if a == "W" else (n,) for a in "UWb" for k in names}, v=(n,)
    )


def pre(p, k, xt, h, n):
    return xt @ p["U" + k].T / 2 + p["b" + k] * 0.1**0.5 + h @ p["W" + k].T * (1.2 / n) ** 0.5


def gru(n, key):
    def f(p, x):
        h = jnp.zeros((x.shape[0], n))
        for t in range(3):
            xt = x[:, t]
            z = jax.nn.sigmoid(pre(p, "z", xt, h, n))
            r = jax.nn.sigmoid(pre(p, "r", xt, h, n))
            h = (h - z * h) + z * jnp.tanh(pre(p, "a", xt, r * h, n))
        return read(p, h)

    return f, gates("zra", n, key)


def lstm(n, key):
    def f(p, x):
        h = c = jnp.zeros((x.shape[0], n))
        s = jax.nn.sigmoid
        for t in range(3):
            xt = x[:, t]
            q = lambda k, xt=xt, h=h: pre(p, k, xt, h, n)
            c = s(q("f")) * c + s(q("i")) * jnp.tanh(q("c"))
            h = s(q("o")) * jnp.tanh(c)
        return read(p, h)

    return f, gates("ifoc", n, key)


def conv(p, name, x, fan, var=2.0, strides=1, bias=True):
    w = p["W" + name]
    y = lax.conv_general_dilated(
        x,
        w * (var / (fan * w.shape[0] * w.shape[1])) ** 0.5,
        (strides,) * 2,
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + p["b" + name] * 0.1**0.5 if bias else y


def cnn(kind):
    def build(n, key):
        p = draw(
            key,
            W1=(3, 3, 2, n),
            b1=(n,),
            W2=(3, 3, n, n),
            b2=(n,),
            W3=(3, 3, n, n),
            b3=(n,),
            v=(4, 4, n) if kind == "flatten" else (n,),
        )

        def f(p, x):
            h = relu(conv(p, "1", x, 2))
            h = relu(conv(p, "2", h, n))
            h = relu(conv(p, "3", h, n))
            if kind == "gap":
                return read(p, h.mean((1, 2)))
            return h.reshape(len(x), -1) @ p["v"].reshape(-1) / (16 * n) ** 0.5

        return f, p

    return build


def cnn_maxpool(n, key):
    p = draw(key, W1=(3, 3, 2, n), b1=(n,), W2=(3, 3, n, n), b2=(n,), v=(n,))

    def f(p, x):
        h = x
        for l, c in (("1", 2), ("2", n)):
            h = lax.reduce_window(relu(conv(p, l, h, c)), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return read(p, h.mean((1, 2)))

    return f, p


def resnet(n, key):
    p = draw(
        key,
        W0=(3, 3, 2, n),
        **{f"W{l}{a}": (3, 3, n, n) for l in "12" for a in "ab"},
        **{f"b{l}{a}": (n,) for l in "12" for a in "ab"},
        v=(n,),
    )

    def f(p, x):
        h = conv(p, "0", x, 2, bias=False)
        for l in "12":
            h = h + 0.5 * conv(p, l + "b", relu(conv(p, l + "a", relu(h), n)), n)
        return read(p, relu(h).mean((1, 2)))

    return f, p


def transformer(n, key):
    p = draw(key, U1=(n, 3), W1a=(n, n), W1b=(n, n), U2=(n, n), W2a=(n, n), W2b=(n, n), v=(n,))

    def f(p, x):
        h = x
        for l, d in (("1", 3), ("2", n)):
            k = h @ p["U" + l].T / d**0.5
            A = jax.nn.softmax(jnp.einsum("btn,bsn->bts", k, k) / n, -1)
            z = ln(k + A @ k)
            h = ln(z + relu(z @ p[f"W{l}a"].T / n**0.5) @ p[f"W{l}b"].T / n**0.5)
        return read(p, h.mean(1))

    return f, p


def gcn(n, key):
    p = draw(key, W1=(n, 3), b1=(n,), W2=(n, n), b2=(n,), W3=(n, n), b3=(n,), v=(n,))

    def f(p, xa):
        x, a = xa
        h = relu(dense(p, "1", a @ x, 3))
        h = relu(dense(p, "2", a @ h, n))
        h = relu(dense(p, "3", a @ h, n))
        return read(p, h.mean(1))

    return f, p


def deep_sets(n, key):
    p = draw(
        key,
        **{f"W{l}{a}": (n, 3) if l + a == "1a" else (n, n) for a in "ab" for l in "12"},
        **{f"b{l}{a}": (n,) for a in "ab" for l in "12"},
        v=(n,),
    )

    def f(p, x):
        h = relu(dense(p, "2a", relu(dense(p, "1a", x, 3)), n)).mean(1)
        return read(p, relu(dense(p, "2b", relu(dense(p, "1b", h, n)), n)))

    return f, p


def siamese(n, key):
    p = draw(key, W1=(n, 4), W2=(n, n), W3=(n, n), b1=(n,), b2=(n,), b3=(n,), v1=(n,), v2=(n,))

    def f(p, xy):
        t = lambda x: relu(dense(p, "3", relu(dense(p, "2", relu(dense(p, "1", x, 4)), n)), n))
        a, b = t(xy[0]), t(xy[1])
        return read(p, a + b, 0.5, "v1"), read(p, a - b, 0.5, "v2")

    return f, p


def unet(n, key):
    p = draw(
        key, W0=(3, 2, n), b0=(n,), W1=(3, n, n), b1=(n,), T1=(2, n, n), W1s=(3, n, n), W1u=(3, n, n), b1u=(n,), v=(n,)
    )
    dn = ("NWC", "WIO", "NWC")

    def f(p, x):
        cv = lambda w, x, s: lax.conv_general_dilated(x, p[w] * s**0.5, (1,), "SAME", dimension_numbers=dn)
        h0 = relu(cv("W0", x, 2 / 6) + p["b0"] * 0.1**0.5)
        below = lax.reduce_window(h0, 0.0, lax.add, (1, 2, 1), (1, 2, 1), "VALID") / 2
        h = relu(cv("W1", below, 2 / (3 * n)) + p["b1"] * 0.1**0.5)
        up = lax.conv_transpose(h, p["T1"] * (1 / n) ** 0.5, (2,), "SAME", dimension_numbers=dn)
        h = relu(cv("W1s", h0, 1 / (3 * n)) + cv("W1u", up, 1 / (3 * n)) + p["b1u"] * 0.1**0.5)
        return read(p, h)

    return f, p


NETS = {
    "mlp": mlp,
    "mlp_tied": mlp_tied,
    "mlp_two_widths": mlp_two_widths,
    "resnet_mlp": resnet_mlp,
    "autoencoder_tied": autoencoder_tied,
    "layernorm_mlp": normed(ln),
    "rmsnorm_mlp": normed(rms),
    "swiglu": swiglu,
    "rnn": rnn_(jnp.tanh, "last"),
    "rnn_mean": rnn_(jnp.tanh, "mean"),
    "rnn_bidirectional": rnn_bidirectional(jnp.tanh),
    "gru": gru,
    "lstm": lstm,
    "cnn_flatten": cnn("flatten"),
    "cnn_gap": cnn("gap"),
    "cnn_maxpool": cnn_maxpool,
    "resnet": resnet,
    "transformer": transformer,
    "gcn": gcn,
    "deep_sets": deep_sets,
    "siamese": siamese,
    "unet": unet,
}
