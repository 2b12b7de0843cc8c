"""A recursion's text as LaTeX: one pass over its tokens, everything that is not known escaped."""

from __future__ import annotations

import re
import unicodedata

_SITES = r"(?:\[[^\[\]]*\])?"
_TOKEN = re.compile(
    r"V_(?P<function>.+?) (?P<cov>C\((?:[^()]|\([^()]*\))*\))"
    rf"|Θ(?P<theta>\d*)_(?P<parameter>[^\s\[]+)(?P<theta_sites>{_SITES})"
    rf"|\b(?P<kernel>NNGP|NTK)(?P<kernel_number>\d*)(?P<kernel_sites>{_SITES})"
    rf"|\bD(?P<second>M?)(?P<number>\d*)(?P<sites>{_SITES})(?=\()"
    r"|\b(?P<plain>[CME])(?=[( \[])"
    r"|Σ\[(?P<range>[^\[\]]*)\]"
    r"|⟨(?P<inner>[^⟨⟩]*)⟩/(?P<features>\d+)"
    r"|(?P<float>\d+(?:\.\d+)?)(?:e(?P<power>[+-]?\d+))?"
    rf"|(?P<name>[^\W\d]\w*?)(?P<index>\d+|\{{[^{{}}]*\}})?(?P<bar>\u0304?)(?P<name_sites>{_SITES})(?![\w\u0304])"
)
_SIGNS = {
    "…": r"\dots ", "·": r"\cdot ", "′": "'", "−": "-", "∂": r"\partial ", "⊙": r"\odot ", "ᵀ": r"^{\top}",
    "√": r"\surd ", "⟨": r"\langle ", "⟩": r"\rangle ", "Σ": r"\sum ", "~": r"\sim ",
    "^": r"\hat{} ", "\\": r"\backslash ",
}  # fmt: skip


def latex(text: str) -> str:
    """Plain text of a recursion as LaTeX."""
    parts, end = [], 0
    for match in _TOKEN.finditer(text):
        parts += [signs(text[end : match.start()]), _token(match)]
        end = match.end()
    return re.sub(" {2,}", " ", "".join([*parts, signs(text[end:])]))


def _token(m: re.Match[str]) -> str:
    if m["function"]:
        return rf"V_{{{upright(m['function'])}}}\left({latex(m['cov'])}\right)"
    if m["parameter"]:
        below = upright(m["parameter"]) + (rf";\, {inside(m['theta_sites'])}" if m["theta_sites"] else "")
        return rf"\Theta{_number(m['theta'])}_{{{below}}}"
    if m["kernel"]:
        return rf"\mathrm{{{m['kernel']}}}" + _number(m["kernel_number"]) + _below(m["kernel_sites"])
    if m["number"] is not None:
        return ("D" if not m["second"] else "{D^M}") + _number(m["number"]) + _below(m["sites"])
    if m["plain"]:
        return r"\mathrm{E}\," if m["plain"] == "E" else m["plain"]
    if m["range"]:
        return rf"\sum_{{{latex(m['range'])}}}"
    if m["features"]:
        return rf"\frac{{\langle {latex(m['inner'])}\rangle}}{{{m['features']}}}"
    if m["float"]:
        return m["float"] + (rf" \times 10^{{{int(m['power'])}}}" if m["power"] else "")
    return _name(m)


def _name(m: re.Match[str]) -> str:
    """g_{1}, \\mathrm{my\\_h}, x_{0}, \\bar x_{0}: an index is below, sites are too where there is no index."""
    name = m["name"].rstrip("_") if m["index"] else m["name"]
    text = signs(name).strip() if len(name) == 1 else upright(name)
    if m["bar"]:
        text = rf"\bar {text}" if len(name) == 1 else rf"\overline{{{text}}}"
    if not m["index"]:
        return text + _below(m["name_sites"])
    sites = f"[{inside(m['name_sites'])}]" if m["name_sites"] else ""
    return f"{text}_{{{m['index'].strip('{}')}}}{sites}"


def _number(number: str) -> str:
    return f"^{{({number})}}" if number else ""


def _below(sites: str) -> str:
    return f"_{{{inside(sites)}}}" if sites else ""


def inside(sites: str) -> str:
    """Sites without their brackets and the braces around letters."""
    return re.sub(r"[\[\]{}]", "", sites)


def upright(name: str) -> str:
    """A name in upright letters."""
    return rf"\mathrm{{{signs(name).strip()}}}"


def signs(text: str) -> str:
    """Characters one by one: signs and Greek letters by their commands, what TeX reads itself escaped."""
    return "".join(_sign(c) for c in unicodedata.normalize("NFC", text))


def _sign(c: str) -> str:
    if c in _SIGNS:
        return _SIGNS[c]
    if c in "_&%#$":
        return "\\" + c
    if c.isascii():
        return c
    words = unicodedata.name(c, "").split()
    if words[:1] == ["GREEK"] and words[2:3] == ["LETTER"]:
        letter = words[3].lower().replace("lamda", "lambda")
        return "\\" + (letter if words[1] == "SMALL" else letter.capitalize()) + " "
    plain = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return plain or "?"
