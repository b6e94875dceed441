"""`run.compile`: the graphs of one pack do for others, and a machine that cannot compile is told so.

What compiled blocks compute is `tests/parity/test_compiled.py`, for torch's compiler takes its time.
"""

import functools
import json

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from omnikit.compiling import check_compilers, compiler_fault
from omnikit.train import train


@pytest.fixture(autouse=True)
def forgetful():
    """Nothing was compiled before, here or by another test; afterwards all is forgotten again."""
    with torch._inductor.config.patch(force_disable_caches=True):
        torch._dynamo.reset()
        counters.clear()
        yield
    torch._dynamo.reset()


def test_the_graphs_of_the_first_pack_do_for_all(recipe_of, parts, quiet, tmp_path, monkeypatch):
    # How often blocks are traced does not depend on who compiles them; this one takes no time.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr("omnikit.train.compiler_fault", lambda *_: "")
    with (tmp_path / "text.jsonl").open("w") as file:
        for number in range(64):
            turns = [{"role": "user", "content": "a" * (number % 9) ** 2}, {"role": "assistant", "content": "b"}]
            file.write(json.dumps({"id": str(number), "turns": turns}) + "\n")
    data = {"text": {"type": "jsonl", "path": str(tmp_path / "text.jsonl")}}
    stages = {"only": parts.stage({"text": 1}, {"rest": 3e-3}, steps=4, batch={"length": 96, "packs": 2, "micro": 1})}

    class Counting(type(quiet)):
        graphs = ()

        def step(self, record):
            super().step(record)
            self.graphs += (counters["stats"]["unique_graphs"],)

    plain, compiled = Counting(), Counting()
    train(recipe_of(stages, data=data), tmp_path / "plain", plain)
    train(recipe_of(stages, data=data, run={"compile": True, "recompute": True}), tmp_path / "compiled", compiled)
    assert not any(plain.graphs), "nothing is compiled that should not be"
    assert compiled.graphs[0] > 0
    assert compiled.graphs[0] == compiled.graphs[-1], "documents lie elsewhere in each pack, which is no new graph"
    losses, expected = ([record["loss"] for record in shown.records] for shown in (compiled, plain))
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_machine_without_a_compiler_is_told_before_the_first_step(recipe_of, parts, quiet, tmp_path):
    stages = {"only": parts.stage({"text": 1}, {"rest": 3e-3})}
    folder = tmp_path / "run"
    with torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "no-such-compiler"))}):
        with pytest.raises(ValueError, match=r"run\.compile: nothing .* the machine of rank 0 .*no-such-compiler"):
            train(recipe_of(stages, run={"compile": True}), folder, quiet)
        assert not folder.exists(), "nothing is written"
        assert compiler_fault(recipe_of(stages), torch.device("cpu")) == "", "who does not ask for it needs none"
    with pytest.raises(ValueError, match="rank 3"):
        check_compilers({0: "", 3: "no compiler"})
