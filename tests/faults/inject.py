"""The faults, by name. Each is put into omnikit from outside, in the rank that it is for; `step` counts from 1."""

import gc
import itertools
import json
import os
import signal
import sys
import time

import torch

import omnikit.checkpoint
import omnikit.data
import omnikit.filling
import omnikit.mixing
import omnikit.tensorfiles
import omnikit.train
from omnikit.model import OmniModel

RANK = int(os.environ.get("RANK", "0"))
now = {"step": 0, "stage": ""}


def _say(text):
    print(f"injected on rank {RANK}: {text}", file=sys.stderr, flush=True)


def _once(mark):
    """Whether a fault is to come that comes in the first start alone: `mark` is a file that remembers."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _at_step(do):
    """Call do(step) when a step begins."""
    factor = omnikit.train.rate_factor

    def rate_factor(schedule, step, steps):
        do(step)
        return factor(schedule, step, steps)

    omnikit.train.rate_factor = rate_factor


def _at_save(do):
    """Call do(step) when a checkpoint begins to be written, in the thread that writes it."""
    save = omnikit.checkpoint.save

    def saving(folder, *rest, **named):
        do(int(folder.name.removeprefix("step-")))
        return save(folder, *rest, **named)

    omnikit.checkpoint.save = saving


def _forward(change):
    """Pass what the model's forward gives through change(model, batch, step, loss)."""
    _at_step(lambda step: now.update(step=step))
    forward = OmniModel.forward

    def changed(self, batch, *rest, **named):
        return change(self, batch, now["step"], lambda: forward(self, batch, *rest, **named))

    OmniModel.forward = changed


def small_windows():
    """Windows of 16 samples, so that plans and resuming cross their edges."""
    omnikit.mixing.WINDOW, omnikit.mixing.PACKS = 16, 0


def small_files():
    """Files of a checkpoint of 8 kB, so that there are several of a rank."""
    omnikit.tensorfiles.FILE = 8192


def other_index(rank):
    """A rank's machine has other media: its index of lengths differs."""
    if rank == RANK:
        digests = omnikit.data.StageData.digests.fget
        omnikit.data.StageData.digests = property(lambda self: {**digests(self), "image": "another"})


def small_shards():
    """Shards of two features, so that every rank makes some."""
    omnikit.filling.ITEMS = 2


def hold_frozen_whole():
    """Frozen layers stay in float32, also in bf16."""
    omnikit.train.hold_frozen = lambda model, dtype: None


def die(rank, step, mark, number=int(signal.SIGKILL)):
    """A rank ends itself as a step begins, in the first start alone."""
    if rank == RANK:

        def do(at):
            if at == step and _once(mark):
                _say(f"signal {number} at step {step}")
                os.kill(os.getpid(), number)

        _at_step(do)


def hold(rank, steps, more):
    """A rank says when this start has made so many steps, and after `more` others waits to be killed."""
    if rank == RANK:
        counted = itertools.count()

        def do(_):
            made = next(counted)
            if made == steps:
                _say(f"{steps} steps are made")
            elif made == steps + more:
                time.sleep(300)

        _at_step(do)


def asked_in_report(number):
    """A signal comes while the report is made."""
    import omnikit.report

    make = omnikit.report.report

    def asked(*args, **named):
        _say(f"signal {number} in the report")
        os.kill(os.getpid(), number)
        return make(*args, **named)

    omnikit.report.report = asked


def wait_for_file(rank, step, path):
    """A rank begins a step once a file is there, which is written beside the training; for a minute at most."""
    if rank == RANK:

        def do(at):
            until = time.monotonic() + 60
            while at == step and not os.path.exists(path) and time.monotonic() < until:
                time.sleep(0.01)

        _at_step(do)


def sleep(rank, step, seconds, module=""):
    """A rank sleeps in the forward pass of a module (by default before the model's own) in a step."""
    if rank != RANK:
        return

    def change(model, batch, at, forward):
        if at == step:

            def nap(*_):
                _say(f"{seconds} s of sleep in {module or 'the model'} at step {step}")
                time.sleep(seconds)

            if not module:
                nap()
                return forward()
            handle = model.get_submodule(module).register_forward_pre_hook(nap)
            try:
                return forward()
            finally:
                handle.remove()
        return forward()

    _forward(change)


def slow(rank, seconds, module="backbone.model.layers.0"):
    """A rank takes so much longer for every forward pass of a module."""
    if rank == RANK:
        _say(f"{seconds} s more in every forward pass of {module}")

        def change(model, batch, step, forward):
            handle = model.get_submodule(module).register_forward_pre_hook(lambda *_: time.sleep(seconds))
            try:
                return forward()
            finally:
                handle.remove()

        _forward(change)


def trace(folder):
    """Write down for each rank and step the ids of its samples, and whether the optimizer stepped."""
    path = os.path.join(folder, f"trace-{RANK}.jsonl")
    steps, made = omnikit.data.StageData.steps, torch.optim.AdamW.step

    def write(**told):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    def traced(self, start, rank=0, ranks=1):
        for work in steps(self, start, rank, ranks):
            write(what="read", ids=[sample.id for sample in work.samples], packs=len(work.packs), ranks=ranks)
            yield work

    def stepped(self, *args, **named):
        given = made(self, *args, **named)
        write(what="stepped", step=now["step"])
        return given

    _at_step(lambda step: (now.update(step=step), write(what="step", step=step))[0])
    omnikit.data.StageData.steps = traced
    torch.optim.AdamW.step = stepped


def stop_after(stage, step):
    """Rank 0 is asked to stop as it logs a step: the run saves after the next one."""
    log = omnikit.checkpoint.RunFolder.log

    def logged(self, record):
        log(self, record)
        if (record["stage"], record["step"]) == (stage, step):
            os.kill(os.getpid(), signal.SIGTERM)

    omnikit.checkpoint.RunFolder.log = logged


def _poison(tensor, value):
    return torch.where(torch.arange(tensor.numel()).view(tensor.shape) == 0, torch.full_like(tensor, value), tensor)


def nonfinite(what, rank, steps, value):
    """In these steps, on one rank: `loss`, the `gradient` of what enters the backbone's head, the output of the encoder
    `encoders.NAME`, or the `input` of an encoder: the first number of it is `value` (nan, inf).
    """
    if rank != RANK:
        return
    value = float(value)

    def change(model, batch, at, forward):
        if at not in steps:
            return forward()
        _say(f"{value} in {what} at step {at}")
        if what == "loss":
            loss = forward()
            return loss._replace(total=loss.total + value, by_group=_poison(loss.by_group, value))
        if what == "gradient":
            module = model.get_submodule("backbone.model.layers.1")

            def spoil(_, __, out):
                first = out[0] if isinstance(out, tuple) else out
                first.register_hook(lambda gradient: _poison(gradient, value))

            handle = module.register_forward_hook(spoil)
        elif what == "input":
            # the first item of every modality, as a reader would have given it
            for media in batch.media.values():
                media.items[0].value.view(-1)[0] = value
            return forward()
        else:
            handle = model.get_submodule(what).register_forward_hook(lambda _, __, out: _poison(out, value))
        try:
            return forward()
        finally:
            handle.remove()

    _forward(change)


def limit_files(rank, step, size):
    """From a step's checkpoint on no file that a rank writes may be longer (RLIMIT_FSIZE), as on a full disk."""
    if rank == RANK:
        import resource

        def do(at):
            if at == step:
                _say(f"no file may be longer than {size} bytes from the checkpoint of step {step} on")
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        _at_save(do)


def fail_sync(rank, step, code):
    """From a step's checkpoint on forcing a file to disk fails with this errno (a quota, a read-only or bad disk)."""
    if rank == RANK:
        sync, saved = omnikit.checkpoint.sync, [0]

        def failing(path):
            if saved[-1] >= step:
                _say(f"errno {code} ({os.strerror(code)}) as {path} is synced")
                raise OSError(code, os.strerror(code))  # as fsync does: it knows no name
            sync(path)

        omnikit.checkpoint.sync = failing
        _at_save(saved.append)


def vanish(rank, step, folder):
    """The run's folder is elsewhere as a step begins, as when a disk is unmounted."""
    if rank == RANK:

        def do(at):
            if at == step:
                _say(f"{folder} is gone at step {step}")
                os.rename(folder, folder + ".away")

        _at_step(do)


def die_at_call(rank, name, number, step, mark):
    """Before the nth call of a function of omnikit.checkpoint from a step on, in the first start."""
    if rank == RANK:
        owner = omnikit.tensorfiles.dcp if name == "dcp.save" else omnikit.checkpoint
        name = name.rpartition(".")[2]
        function, calls = getattr(owner, name), []

        def dying(*args, **named):
            if now["step"] >= step:
                calls.append(1)
                if len(calls) == number and _once(mark):
                    _say(f"SIGKILL before call {number} of {name} after step {step}")
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **named)

        setattr(owner, name, dying)
        _at_step(lambda at: now.update(step=at))


def clock(seconds, step):
    """The wall clock jumps at a step."""
    real = time.time

    def do(at):
        if at == step:
            _say(f"the clock jumps by {seconds} s at step {step}")
            time.time = lambda: real() + seconds

    _at_step(do)


def umask(mask):
    """New files and folders lack these permissions."""
    _say(f"umask {mask:o}")
    os.umask(mask)


def watch_resources(path, every):
    """Write down memory, open files and threads every so many steps."""

    def do(step):
        if step % every == 0:
            gc.collect()
            with open("/proc/self/statm", encoding="ascii") as file:
                pages = int(file.read().split()[1])
            told = {
                "step": step,
                "memory": pages * 4096,
                "files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
            }
            with open(f"{path}-{RANK}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")

    _at_step(do)


def stand_in(module, value):
    """Wherever a batch has no audio, all that the encoder makes of its example is `value`."""
    value = float(value)

    def change(model, batch, at, forward):
        if "audio" in batch.media:
            return forward()
        _say(f"{value} in what {module} makes of its example at step {at}")
        handle = model.get_submodule(module).register_forward_hook(lambda _, __, out: torch.full_like(out, value))
        try:
            return forward()
        finally:
            handle.remove()

    _forward(change)
