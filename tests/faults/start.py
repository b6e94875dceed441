"""What every rank of a fault test runs: the faults it was told of are put in, and then omnikit begins.

FAULTS in the environment is a list of [name, arguments] for `inject`. `call` is `omnikit` (its command line) or
`module:function` of this folder.
"""

import importlib
import json
import os
import sys

import torch


def main(call, arguments):
    """Put the faults in, then call."""
    torch.set_num_threads(1)
    if told := json.loads(os.environ.get("FAULTS", "[]")):
        import inject

        for name, given in told:
            getattr(inject, name)(**given)
    if call == "omnikit":
        import omnikit.cli

        sys.argv = ["omnikit", *arguments]
        omnikit.cli.main()
    else:
        module, _, function = call.partition(":")
        getattr(importlib.import_module(module), function)(*arguments)


if __name__ == "__main__":  # a rank that torchrun started, or the launcher itself
    sys.path.insert(0, os.path.dirname(__file__))
    main("omnikit", sys.argv[1:])
