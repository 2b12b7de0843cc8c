"""What every test starts from: float64 switched on, compiled functions kept, hypothesis without a clock."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.monitoring
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tensorprog.interpret.system import moments

jax.config.update("jax_enable_x64", True)

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("tests")

# Compiled functions are kept beside pytest's own cache, so that a second run starts warm; a folder a worker, since JAX
# writes its entries in place. A test that times compilation runs its code in `fresh_process`, where nothing is kept.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--until", type=float, help="seconds since the epoch: slow tests that would begin later are skipped, and named"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A machine that is busy with other things runs as many of the slow tests as fit."""
    until = item.config.getoption("--until")
    if until is not None and time.time() > until and item.get_closest_marker("slow") is not None:
        pytest.skip("no time is left for it in this run")


@pytest.fixture
def fresh_process() -> Callable[[str], str]:
    """fresh_process(code) runs Python code in a process of its own, in float64 and without caches; what it prints."""

    def run(code: str) -> str:
        start = "import jax\njax.config.update('jax_enable_x64', True)\n"
        command = [sys.executable, "-c", start + textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> None:
    """XLA leaves most optimizations out where a test runs briefly: compiling takes most of its time, and twice as long
    with them. Slow tests run what users run."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def own_draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's generator begins anew with each test: what one draws does not depend on those run before it."""
    module = getattr(request.node, "module", None)  # a docstring has none
    if hasattr(module, "RNG"):
        monkeypatch.setattr(module, "RNG", np.random.default_rng(0))


@pytest.fixture(autouse=True)
def bounded_executables() -> Iterator[None]:
    """Compiled functions are dropped now and then: a process may map only so many pieces of memory, and each executable
    takes several (Linux allows 65 530, after which the process dies)."""
    yield
    with contextlib.suppress(OSError):
        if Path("/proc/self/maps").read_text(encoding="utf-8").count("\n") > 20_000:
            moments.cache_clear()
            jax.clear_caches()


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of what is compiled from here on."""
    found: list[str] = []

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(str(kwargs.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax.monitoring.unregister_event_duration_listener(heard)
