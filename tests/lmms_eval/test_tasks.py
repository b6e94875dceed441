"""lmms-eval's own tasks on a run, as they are in its package, from rows on this disk and without a network.

`make lmms-eval` runs this in `.venv-lmms`; the environment variable RUN names the run. A task of lmms-eval loads the
data set that it names with `datasets.load_dataset`, which takes a folder of that name where there is one: so each task
runs in a folder that holds rows in the published layout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lmms_eval.api.instance import Instance
from omnikit_lmms_eval.model import Omnikit

from omnikit.component import Medium, Sample, Turn
from omnikit.generate import Run
from omnikit.media.opening import source_of

RUN = Path(os.environ.get("RUN", "runs/tiny_omni")).absolute()
ROWS = Path(__file__).parents[2] / "omnikit/evaluate/rows"
PICTURE = {"_type": "Image"}


@pytest.fixture(scope="module")
def run():
    return Run.load(RUN)


def shipped(name):
    """The rows of ours that come with a benchmark."""
    return pq.read_table(ROWS / name / "data/test-00000-of-00001.parquet").to_pylist()


def evaluated(tmp_path, task, data_set, rows, image, *options):
    """(results, logged answers by row) of one of lmms-eval's tasks over rows under the name of its data set."""
    folder = tmp_path / data_set / "data"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    # As tables of the hub have it: without it a picture is a mapping.
    features = {"info": {"features": {name: described(table.schema.field(name)) for name in table.column_names}}}
    features["info"]["features"]["image"] = image
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), folder / "test-00000-of-00001.parquet"
    )
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, "-m", "lmms_eval", "--model", "omnikit", "--model_args", f"pretrained={RUN}"]
    command += ["--tasks", task, "--log_samples", "--output_path", "out", *options]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = tmp_path.glob("out/**/*_results.json")
    [logged] = tmp_path.glob(f"out/**/*_samples_{task}.jsonl")
    answers = {row["doc_id"]: row for row in map(json.loads, logged.read_text().splitlines())}
    return json.loads(results.read_text())["results"][task], [answers[number] for number in range(len(rows))]


def described(field):
    return {"dtype": str(field.type), "_type": "Value"}


def asked(run, rows, text_of):
    """The run's own answers to the same pictures and texts, without lmms-eval."""
    samples = [
        Sample(str(number), (Turn("user", (("image", Medium(row["image"]["bytes"])), ("text", text_of(row)))),
                             Turn("assistant", ())))
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return run.answer(samples, max_tokens=16)


def test_mme_scores_the_answers_that_the_run_gives(run, tmp_path):
    rows = shipped("mme")
    scores, logged = evaluated(tmp_path, "mme", "lmms-lab-encoder/MME", rows, PICTURE)
    post = "\nAnswer the question using a single word or phrase."
    own = asked(run, rows, lambda row: row["question"].replace(" Please answer yes or no.", "") + post)
    assert [row["filtered_resps"] for row in logged] == own
    # Two of a picture's questions are worth 50 points each, and 100 more if both are right; means by subtask, summed.
    right = [
        answer.lower().strip()[:4].startswith(row["answer"].lower()) for row, answer in zip(rows, own, strict=True)
    ]
    pictures = [(50 * (a + b) + 100 * (a and b)) for a, b in zip(right[::2], right[1::2], strict=True)]
    assert scores["mme_perception_score,none"] == pytest.approx((pictures[0] + pictures[1]) / 2)
    assert scores["mme_cognition_score,none"] == pytest.approx(pictures[2])


def test_realworldqa_scores_the_runs_held_out_pictures(run, tmp_path):
    """Questions that the run was made for, so that right answers are many, in the layout of RealWorldQA."""
    rows = held_out(run)
    scores, logged = evaluated(tmp_path, "realworldqa", "lmms-lab-encoder/RealWorldQA", rows, PICTURE)
    own = asked(run, rows, lambda row: row["question"])
    assert [row["filtered_resps"] for row in logged] == own
    right = sum(answer.lower().strip().rstrip(".") == row["answer"] for row, answer in zip(rows, own, strict=True))
    assert scores["exact_match,none"] == pytest.approx(right / len(rows))
    assert right > len(rows) / 2


def test_seedbench_chooses_by_the_likelihoods_that_the_run_gives(run, tmp_path):
    rows = shipped("seed_img")[:3]
    scores, logged = evaluated(
        tmp_path, "seedbench_ppl", "lmms-lab-encoder/SEED-Bench", rows, [PICTURE], "--force_simple"
    )
    choices = [[row[f"choice_{letter}"] for letter in "abcd"] for row in rows]
    samples = [
        Sample(row["question_id"], (Turn("user", (("image", Medium(row["image"][0]["bytes"])),
                                                  ("text", row["question"] + " Answer :"))), Turn("assistant", ())))
        for row in rows
    ]  # fmt: skip
    encode = run.layouter.tokenizer.encode
    own = [
        [-one / len(encode(text, add_special_tokens=False).ids) for one, text in zip(given, texts, strict=True)]
        for given, texts in zip(run.likelihoods(samples, choices), choices, strict=True)
    ]
    told = [[float(loss) for loss, _ in row["filtered_resps"]] for row in logged]  # logged as texts
    for losses, expected in zip(told, own, strict=True):
        assert losses == pytest.approx(expected, rel=1e-4)
    right = ["ABCD"[losses.index(min(losses))] == row["answer"] for losses, row in zip(own, rows, strict=True)]
    assert scores["acc,none"] == pytest.approx(sum(right) / len(rows))


def test_a_film_and_a_text_are_asked_as_omnikit_asks_them(run):
    film = str(ROWS / "egoschema/videos/clip0.mp4")
    model = Omnikit(str(RUN))
    model.task_dict = {"films": {"test": [{"video": film}]}}
    asks = ("what happens", {"max_new_tokens": 8}, lambda row: [row["video"]], 0, "films", "test")
    given = model.generate_until([Instance("generate_until", asks, 0, {"task": "films", "doc_id": 0, "repeats": 1})])
    user = Turn("user", (("video", Medium(film)), ("text", "what happens")))
    assert given == run.answer([Sample("one", (user, Turn("assistant", ())))], max_tokens=8)


def held_out(run):
    """Up to 60 of the run's held-out questions about one picture, as rows of RealWorldQA."""
    found = []
    for entry in run.recipe.heldout.values():
        source = entry.data.open()
        for sample in (source[index] for index in range(len(source))):
            (user, answer) = sample.turns[-2:]
            media = [(name, part) for name, part in user.content if name != "text"]
            if [name for name, _ in media] == ["image"] and len(user.content) == 2 and len(found) < 60:
                text = "".join(part for name, part in user.content if name == "text")
                expected = "".join(part for _, part in answer.content)
                found.append(
                    {"image_path": sample.id, "question": text, "answer": expected, "image": bytes_of(media[0][1])}
                )
    assert len(found) >= 20, f"{RUN}: has too few held-out questions about a picture; train recipes/tiny_omni.yaml"
    return found


def bytes_of(medium):
    source = source_of(medium, 2**28)
    return {"bytes": source.read() if hasattr(source, "read") else Path(source).read_bytes(), "path": "picture"}
