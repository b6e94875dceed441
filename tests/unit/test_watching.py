"""What a run's display says of a step, in a line that fits."""

import io

import pytest
from rich.console import Console

from omnikit.cli.watching import Bars, Lines


def record(step, loss=1.2345, seconds=0.5, **others):
    line = {"stage": "image_caption", "step": step, "loss": loss, "seconds": seconds, "wait": 0.5, "tokens": 1000}
    return line | {"tokens_per_second": 123456.0, "mfu": 0.412, "memory": 65_300_000_000} | others


def test_a_line_tells_loss_speed_utilisation_wait_memory_and_time_left(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 10, 20)
    display.began -= 60
    display.step(record(12, seconds=1.5))
    display.step(record(13, seconds=0.5, mfu=0.0, tokens_per_second=0.0, wait=0.0))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "image_caption 13/20  loss 1.234  92,592 tokens/s  MFU 31%  wait 20%  65.3 GB  2 min left"
    display.step(record(20, mfu=0.0))
    assert capsys.readouterr().err.splitlines()[-1].endswith("GB  in 1 min"), "what a stage took is said at its end"


def test_speeds_are_those_of_the_last_steps(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 0, 100)
    for step in range(1, 60):
        display.step(record(step, tokens_per_second=1e9 if step < 30 else 100.0, mfu=0.9 if step < 30 else 0.004))
    assert "  100 tokens/s  MFU 0.4%  " in capsys.readouterr().err.splitlines()[-1]


def test_a_skipped_step_has_no_loss(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 0, 2)
    display.step(record(1, loss=None))
    assert "image_caption 1/2  skipped  " in capsys.readouterr().err


def test_what_was_held_out_is_a_line_and_an_alarm_another(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 0, 20)
    line = {
        "stage": "image_caption",
        "step": 4,
        "loss": 1.1,
        "losses": {"text": 1.0, "image": 1.2},
        "alarm": "it forgets",
    }
    display.heldout(line)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "image_caption 4/20  held-out loss 1.100: text 1.000  image 1.200",
        "warning: it forgets",
    ]


@pytest.mark.parametrize("width", [100, 140])
def test_a_bar_keeps_to_its_line(width):
    display = Bars(["language", "image_caption"], 1)
    display.stage("image_caption", 0, 20_000)
    display.step(record(15_000))
    console = Console(file=io.StringIO(), width=width)
    console.print(*display.bars.get_renderables())
    (line,) = console.file.getvalue().splitlines()
    assert "2/2 image_caption" in line and "15000/20000" in line and line.rstrip().endswith("0 s left")
