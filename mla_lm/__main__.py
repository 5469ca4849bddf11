"""`python -m mla_lm VERB [key=value]`, installed as `mla-lm`."""

import keyword
import signal
import sys
from difflib import get_close_matches
from importlib import import_module

from mla_lm.config import cli
from mla_lm.errors import STOPPED, UserError, guard

VERBS = {
    "ablate": "a study of several runs, which resumes, and its report",
    "bench": "measure this machine against peers",
    "export": "write a folder that transformers, vLLM and lm_eval load",
    "generate": "continue a prompt with a trained model",
    "info": "what a configuration costs: parameters, FLOPs, memory, KV cache",
    "import": "make a run of a DeepSeek-V3-style folder",
}


def main() -> None:
    """Run the verb named first on the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # what is half written goes
    guard(lambda: _run(*sys.argv[1:] or ["--help"]))


def _run(verb: str, *arguments: str) -> None:
    if verb in ("-h", "--help", "help"):
        print("usage: mla-lm VERB [key=value]")
        print("\n".join(f"  {name:10} {purpose}" for name, purpose in VERBS.items()))
        return
    if verb not in VERBS:
        script = f"; do you mean python {verb}.py" if verb in ("train", "eval") else ""
        near = "".join(f"; do you mean {v}" for v in get_close_matches(verb, VERBS, 1))
        raise UserError(f"{verb}: unknown verb; choose from {', '.join(VERBS)}{script or near}")
    module = f"{verb}_" if keyword.iskeyword(verb) else verb
    command = import_module(f"mla_lm.commands.{module}")
    if {"-h", "--help"} & set(arguments):
        print(f"{str(command.__doc__).rstrip()}\n\n{cli.describe_options(command.Options)}")
    else:
        command.run(arguments)


if __name__ == "__main__":
    main()
