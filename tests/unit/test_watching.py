"""What a run's display says of a step, in a line that fits."""

import io

import pytest
from rich.console import Console

from omnikit.cli.watching import Bars, Lines


def record(step, loss=1.2345, seconds=0.5, **others):
    line = {"stage": "image_caption", "step": step, "loss": loss, "seconds": seconds, "wait": 0.5, "tokens": 100_000}
    line |= {"mfu": 0.4, "memory": 65_300_000_000} | others
    return {"tokens_per_second": line["tokens"] / (seconds + line["wait"])} | line


def test_a_line_tells_loss_speed_utilisation_wait_memory_and_time_left(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 10, 20)
    display.began -= 60
    display.step(record(12, seconds=1.5))
    display.step(record(13, seconds=0.5, mfu=0.0, wait=0.0))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "image_caption 13/20  loss 1.234  80,000 tokens/s  MFU 32%  wait 20%  65.3 GB  2 min left"
    display.step(record(20, mfu=0.0))
    assert capsys.readouterr().err.splitlines()[-1].endswith("GB  in 1 min"), "what a stage took is said at its end"


def test_speeds_are_those_of_the_last_steps(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 0, 100)
    for step in range(1, 60):
        display.step(record(step, tokens=10**9 if step < 30 else 100, mfu=0.9 if step < 30 else 0.004))
    assert "  100 tokens/s  MFU 0.4%  " in capsys.readouterr().err.splitlines()[-1]


def test_a_step_that_waited_counts_with_all_of_its_time(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 0, 2)
    display.step(record(1, seconds=1.0, wait=9.0, tokens=100, mfu=0.1))
    display.step(record(2, seconds=1.0, wait=0.0, tokens=100, mfu=0.21))
    assert "  18 tokens/s  MFU 11%  wait 82%  " in capsys.readouterr().err


def test_who_waited_for_another_ranks_data_has_not_waited_longer_than_the_step(capsys):
    display = Lines(["image_caption"], 1)
    display.stage("image_caption", 0, 1)
    display.step(record(1, seconds=10.0, wait=9.0, tokens=100, tokens_per_second=10.0))  # its own data were there
    assert "  10 tokens/s  MFU 40%  wait 90%  " in capsys.readouterr().err


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
