"""Write docs/nets.md: every architecture of the zoo with its docstring and the listing of its small instance.

python docs/make_nets.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from tensorprog.nets import NETS

PLACE = r"[ \t]+\w+\.py:\d+$"  # where an instruction stands: edits move it
GROUPS = {
    "multilayer": "Multilayer perceptrons",
    "normalised": "Normalisation",
    "gated": "Gates and dropout",
    "recurrent": "Recurrent networks",
    "convolutional": "Convolutional networks",
    "attention": "Transformers",
    "sets": "Sets, graphs and pairs",
}
HEAD = """# The architectures

Each is one function of traced values in `tensorprog/nets/`, without a rule of its own anywhere else. The small instance
`tp.nets.ZOO[name]` is listed here; `tp.nets.net(name).program(tp.Input(…), depth=…, …)` traces others. Which are
integrated and which sampled stands with each. This page is written by `python docs/make_nets.py`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for module, title in GROUPS.items():
        parts.append(f"## {title}\n")
        for name, net in NETS.items():
            if net.fn.__module__.rpartition(".")[2] == module:
                listing = re.sub(PLACE, "", str(net.program()), flags=re.MULTILINE)
                parts.append(f"### {name}\n\n{inspect.getdoc(net.fn)}\n\n```text\n{listing}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("nets.md").write_text(page(), encoding="utf-8")
