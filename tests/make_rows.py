"""The few rows that each benchmark's definition is tried on, in the layout in which its data set is published.

    python tests/make_rows.py

writes them into omnikit/evaluate/rows. All of it is ours: coloured pictures of 32 pixels, clips of a second, tones of
half a second, and questions about them. Each benchmark has one question whose answer a test gives rightly, one wrongly
and one in a way that nothing can be made of (tests/unit/test_benchmarks.py).
"""

# ruff: noqa: E501, RUF001  (tables, and Chinese)
# fmt: off

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile
from PIL import Image

ROWS = Path(__file__).parents[1] / "omnikit" / "evaluate" / "rows"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}


def picture(colour):
    """A PNG of 32 x 32 pixels: a square of the colour on grey."""
    pixels = np.full((32, 32, 3), 128, np.uint8)
    pixels[8:24, 8:24] = COLOURS[colour]
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def sound(hertz):
    """A WAV of half a second at 8 kHz."""
    time = np.arange(4000) / 8000
    held = io.BytesIO()
    soundfile.write(held, 0.3 * np.sin(2 * np.pi * hertz * time), 8000, format="WAV", subtype="PCM_16")
    return held.getvalue()


def film(path, colour):
    """A clip of a second, 32 x 32 pixels: the colour grows from the left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(4):
            pixels = np.full((32, 32, 3), 128, np.uint8)
            pixels[:, : 8 * (number + 1)] = COLOURS[colour]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def held(data, name):
    """Bytes as Hugging Face's tables hold media."""
    return {"bytes": data, "path": name}


def pictures():
    """Four pictures as tables hold them."""
    return [held(picture(colour), f"{colour}.png") for colour in COLOURS]


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def table(path, rows, between=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=between, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def as_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def lettered(options, **row):
    return {**row, **dict(zip("ABCDEF", options, strict=False))}


# ----------------------------------------------------------------------------------------------------------------- text


def mmlu(folder):
    asked = [("astronomy", "Which body does the Moon go round?", ["Mars", "the Earth", "Venus", "the Sun"], 1),
             ("astronomy", "How many moons has the Earth?", ["none", "two", "one", "three"], 2),
             ("high_school_geography", "Which of these is an ocean?", ["the Pacific", "the Nile", "Paris", "Peru"], 0)]
    keys = ("subject", "question", "choices", "answer")
    parquet(folder / "all/test-00000-of-00001.parquet", [dict(zip(keys, one, strict=True)) for one in asked])


def cmmlu(folder):
    def row(number, question, options, answer):
        return {"": number, "Question": question, **lettered(options), "Answer": answer}

    table(folder / "test/astronomy.csv", [row(0, "月球绕哪个天体运行？", ["火星", "地球", "金星", "太阳"], "B"),
                                          row(1, "地球有几颗天然卫星？", ["零", "二", "一", "三"], "C")])
    table(
        folder / "test/college_education.csv", [row(0, "下列哪个是海洋？", ["太平洋", "尼罗河", "巴黎", "秘鲁"], "A")]
    )


def agieval(folder):
    def row(question, options, label, passage=None, answer=None):
        return {"passage": passage, "question": question, "options": options, "label": label, "answer": answer,
                "other": None}

    lettered_ = ["(A)2", "(B)3", "(C)4", "(D)5", "(E)6"]
    rows = {
        "sat-math": [row("What is 1 + 2?", lettered_[:4], "B"), row("What is 2 + 2?", lettered_[:4], "C")],
        "lsat-ar": [row("How many come?", lettered_, "A", passage="Ann and Bob come; nobody else does.")],
        "jec-qa-kd": [row("下列哪个是偶数？", ["(A)3", "(B)4", "(C)5", "(D)7"], ["B"])],
        "gaokao-mathqa": [row("下列哪些是偶数？", ["(A)2", "(B)4", "(C)5", "(D)7"], "A B")],
        "math": [row("What is 3 + 4?", None, None, answer="7")],
    }
    for name, found in rows.items():
        lines(folder / f"v1_1/{name}.jsonl", [json.dumps(one, ensure_ascii=False) for one in found])


def ceval(folder):
    def row(number, question, options, answer):
        return {"id": number, "question": question, **lettered(options), "answer": answer}

    table(folder / "val/law_val.csv", [row(0, "下列哪个是水果？", ["苹果", "石头", "铁", "书"], "A"),
                                       row(1, "一年有几个月？", ["十", "十一", "十二", "十三"], "C")])
    table(folder / "val/physics_val.csv", [row(0, "水在多少摄氏度结冰？", ["100", "0", "50", "37"], "B")])


def gaokao(folder):
    names = ["Math_I", "Math_II", "History", "Biology", "Political_Science", "Chemistry"]
    files = [*(f"2010-2022_{name}_MCQs" for name in names), "2010-2013_English_MCQs"]
    for number, name in enumerate(files):
        question = (
            f"{number + 1}．（ 4分）{number} + 1 =（ 　　） \nA．{number}  B．{number + 1}  C．{number + 2}  D．0\n"
        )
        one = {"year": "2022", "category": "（样例）", "question": question, "answer": ["B"], "analysis": "", "index": 0,
               "score": 4}
        several = {**one, "question": "下列哪些是偶数？ \nA．2  B．3  C．4  D．5\n", "answer": ["A", "C"], "index": 1}
        as_json(folder / f"{name}.json", {"keywords": name, "example": [one, several] if number == 0 else [one]})


# ---------------------------------------------------------------------------------------------------------------- image


def mmbench(folder, name, questions):
    rows = []
    for index, (question, options, answer, colour) in enumerate(questions):
        for turn in range(len(options)):
            # CircularEval: the same question with its choices moved on by one.
            moved = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": index + turn * 1_000_000,
                    "question": question,
                    "hint": "The square is on grey." if index == 0 else "",
                    **dict(zip("ABCD", [*moved, "", ""][:4], strict=True)),
                    "answer": "ABCD"[moved.index(answer)],
                    "category": "attribute_recognition" if index < 2 else "object_localization",
                    "image": base64.b64encode(picture(colour)).decode(),
                    "source": "ours",
                    "l2-category": "finegrained_perception",
                    "comment": "",
                    "split": "dev",
                }
            )
    table(folder / f"{name}.tsv", rows, "\t")


def mmbench_en(folder):
    mmbench(folder, "MMBench_DEV_EN", [("What colour is the square?", ["red", "green"], "red", "red"),
                                       ("Which colour is seen?", ["green", "blue"], "green", "green"),
                                       ("Where is the square?", ["in the middle", "nowhere"], "in the middle", "blue")])


def mmbench_cn(folder):
    mmbench(folder, "MMBench_DEV_CN", [("正方形是什么颜色？", ["红色", "绿色"], "红色", "red"),
                                       ("能看到哪种颜色？", ["绿色", "蓝色"], "绿色", "green"),
                                       ("正方形在哪里？", ["在中间", "没有"], "在中间", "blue")])


def m3gia(folder):
    def row(index, question, options, answer, kind, image, hint=None):
        values = dict.fromkeys("ABCDEF")
        return {"index": index, "hint": hint, "question": question, **values, **lettered(options), "answer": answer,
                "QuestionTypes": kind, "image": image}

    one, two, *_ = pictures()
    parquet(folder / "english_v1.parquet", [
        row("1", "What colour is the square?", ["red", "green", "blue", "white"], "A", "Visualization", one),
        row("2", "Which number comes next?", ["6", "7", "8", "9"], "C", "Number Seres", None, hint="2, 4, 6"),
    ])
    parquet(folder / "chinese_v1.parquet", [
        row("1", "正方形是什么颜色？", ["红色", "绿色", "蓝色", "白色"], "B", "Visualization", two)])


def seed_img(folder):
    def row(number, question, answer, image, kind="image"):
        options = {f"choice_{letter}": colour for letter, colour in zip("abcd", COLOURS, strict=True)}
        return {"question_id": str(number), "question": question, **options, "answer": answer, "data_type": kind,
                "question_type_id": 3 if number < 3 else 5, "data_id": f"{number}.png", "segment": None,
                "image": [image]}

    found = pictures()
    rows = [row(n, "What colour is the square?", "ABC"[n - 1], found[n - 1]) for n in (1, 2, 3)]
    rows.append(row(4, "What happens first?", "A", found[0], "video"))
    parquet(folder / "data/test-00000-of-00001.parquet", rows)


def mme(folder):
    rows = []
    asked = [("color", "red"), ("color", "green"), ("code_reasoning", "blue")]
    for category, colour in asked:
        for said, answer in ((colour, "Yes"), ("black", "No")):
            question = f"Is the square {said}? Please answer yes or no."
            rows.append({"question_id": f"{category}/{colour}.png", "image": held(picture(colour), f"{colour}.png"),
                         "question": question, "answer": answer, "category": category})
    parquet(folder / "data/test-00000-of-00001.parquet", rows)


def mmmu(folder):
    def row(name, kind, question, options, answer, images, subfield):
        columns = {f"image_{number}": None for number in range(1, 8)}
        columns |= {f"image_{number}": image for number, image in enumerate(images, 1)}
        return {"id": name, "question": question, "options": str(options), "explanation": "", **columns,
                "img_type": "['Pictures']", "answer": answer, "topic_difficulty": "Easy", "question_type": kind,
                "subfield": subfield}

    one, two, three, _ = pictures()
    parquet(folder / "data/validation-00000-of-00001.parquet", [
        row("validation_Art_1", "multiple-choice", "What colour is it? <image 1>", ["red", "it's green"], "A", [one],
            "Drawing"),
        row("validation_Art_2", "multiple-choice", "<image 1> Which of the two is blue?", ["<image 2>", "<image 3>"],
            "B", [one, two, three], "Drawing"),
        row("validation_Math_1", "open", "How many squares are in <image 1>?", [], "['1', 'one']", [two], "Geometry"),
    ])


def hallusionbench(folder):
    def row(category, sub, set_id, figure, number, question, answer, colour):
        return {"category": category, "subcategory": sub, "visual_input": "1", "set_id": str(set_id),
                "figure_id": str(figure), "sample_note": "", "question_id": str(number), "question": question,
                "gt_answer_details": "", "gt_answer": answer, "filename": f"{colour}.png",
                "image": held(picture(colour), f"{colour}.png")}

    parquet(folder / "data/image-00000-of-00001.parquet", [
        row("VD", "illusion", 0, 0, 0, "Is the square red?", "1", "red"),
        row("VD", "illusion", 0, 0, 1, "Is the square green?", "0", "red"),
        row("VD", "illusion", 0, 1, 0, "Is the square red?", "0", "green"),
        row("VS", "chart", 1, 1, 0, "Is the square blue?", "1", "blue"),
    ])


def realworldqa(folder):
    ask = "Please answer directly with only the letter of the correct option and nothing else."
    asked = [(f"What colour is the square?\n\nA. red\nB. green\nC. blue\n{ask}", "A", "red"),
             ("How many squares are there? Please answer directly with a single word or number.", "1", "green"),
             (f"Where is it?\n\nA. in the middle\nB. nowhere\n{ask}", "A", "blue")]
    rows = [{"image": held(picture(colour), f"{colour}.webp"), "image_path": f"{colour}.webp", "question": question,
             "answer": answer} for question, answer, colour in asked]
    parquet(folder / "data/test-00000-of-00001.parquet", rows)


def mmvet(folder):
    asked = [("v1_0", "What colour is the square?", "red<OR>crimson", "rec", "red"),
             ("v1_1", "What is seen, and where?", "a green square<AND>in the middle", "rec,spat", "green"),
             ("v1_2", "What does it say?", "nothing", "ocr", "blue")]
    rows = [{"question_id": name, "image": held(picture(colour), f"{name}.png"), "question": question,
             "answer": answer, "image_source": "ours", "capability": ability}
            for name, question, answer, ability, colour in asked]
    parquet(folder / "data/test-00000-of-00001.parquet", rows)


def mathvista(folder):
    def row(pid, question, kind, answer_type, answer, choices=None, precision=None, unit=None, task="figure QA"):
        colour = [*COLOURS][int(pid) - 1]
        return {"pid": pid, "question": question, "image": f"images/{pid}.png",
                "decoded_image": held(picture(colour), f"{pid}.png"), "choices": choices, "unit": unit,
                "precision": precision, "answer": answer, "question_type": kind, "answer_type": answer_type,
                "query": question, "metadata": {"split": "testmini", "task": task, "language": "english"}}

    parquet(folder / "data/testmini-00000-of-00001.parquet", [
        row("1", "What colour is the square?", "multi_choice", "text", "red", ["red", "green", "blue"]),
        row("2", "How many squares are there?", "free_form", "integer", "1", unit="squares"),
        row("3", "How much of the side is square?", "free_form", "float", "0.5", precision=1.0, task="geometry"),
    ])


def textvqa(folder):
    people = [["red"] * 8 + ["crimson", "dark red"], ["green"] * 10, ["nothing"] * 6 + ["no text"] * 4]
    asked = ["what colour is the square?", "which colour is seen?", "what does it say?"]
    rows = [{"image_id": str(number), "question_id": 100 + number, "question": asked[number], "answers": people[number],
             "image": image, "ocr_tokens": [], "set_name": "val"}
            for number, image in enumerate(pictures()[:3])]
    parquet(folder / "data/validation-00000-of-00001.parquet", rows)


def chartqa(folder):
    asked = [("human_test", "How high is the bar?", "16"), ("human_test", "Is it red?", "No"),
             ("augmented_test", "What share is the square?", "25%")]
    rows = [{"type": kind, "question": question, "answer": answer, "image": image}
            for (kind, question, answer), image in zip(asked, pictures(), strict=False)]
    parquet(folder / "data/test-00000-of-00001.parquet", rows)


def ocrbench(folder):
    asked = [("Regular Text Recognition", "what is written in the image?", ["OMNI"], "ours"),
             ("Key Information Extraction", "what is the total?", ["12.50", "12,50"], "ours"),
             ("Handwritten Mathematical Expression Recognition", "write the formula as LaTeX", ["x ^ { 2 }"], "HME100k")]
    rows = [{"dataset": source, "question": question, "question_type": kind, "answer": answer, "image": image}
            for (kind, question, answer, source), image in zip(asked, pictures(), strict=False)]
    parquet(folder / "data/test-00000-of-00001.parquet", rows)


# ---------------------------------------------------------------------------------------------------------------- video


def mvbench(folder):
    asked = {"action_sequence": [("red.mp4", "red", 0)], "moving_count": [("green.mp4", "green", 1)],
             "object_shuffle": [("blue.mp4", "blue", 2)]}
    places = {"action_sequence": "star/Charades_segment", "moving_count": "clevrer/video_validation",
              "object_shuffle": "data0613/perception/videos"}
    for task, rows in asked.items():
        as_json(folder / f"json/{task}.json", [{"video": name, "question": "Which colour grows?", "answer": colour,
                                                "candidates": ["red", "green", "blue"]} for name, colour, _ in rows])
        for name, colour, _ in rows:
            film(folder / places[task] / name, colour)


def egoschema(folder):
    options = [f"{letter}. {colour} grows" for letter, colour in zip("ABCD", COLOURS, strict=True)] + ["E. nothing"]
    rows = [{"question_idx": str(number), "question": "What happens?", "video_idx": f"clip{number}", "option": options,
             "answer": str(number)} for number in range(3)]
    parquet(folder / "Subset/test-00000-of-00001.parquet", rows)
    for number in range(3):
        film(folder / f"videos/clip{number}.mp4", [*COLOURS][number])


def videomme(folder):
    options = [f"{letter}. {colour.capitalize()}." for letter, colour in zip("ABCD", COLOURS, strict=True)]
    rows = [{"video_id": f"{number:03}", "duration": ["short", "short", "long"][number], "domain": "Knowledge",
             "sub_category": "Technology", "url": "", "videoID": f"film{number}", "question_id": f"{number:03}-1",
             "task_type": "Attribute Perception", "question": "Which colour grows?", "options": options,
             "answer": "ABC"[number]} for number in range(3)]
    parquet(folder / "videomme/test-00000-of-00001.parquet", rows)
    for number in range(3):
        film(folder / f"data/film{number}.mp4", [*COLOURS][number])


def perceptiontest(folder):
    rows = [{"video_name": f"video_{number}", "question": "Which colour grows?", "question_id": str(number),
             "options": ["red", "green", "blue"], "answer_id": str(number), "area": ["physics", "physics", "memory"][number],
             "reasoning": "descriptive", "tag": ["colour"]} for number in range(3)]
    parquet(folder / "mc_question_val/validation-00000-of-00001.parquet", rows)
    for number in range(3):
        film(folder / f"videos/video_{number}.mp4", [*COLOURS][number])


def activitynet_qa(folder):
    asked = [("a", "is the square red", "yes", 3, "mp4"), ("b", "what is the colour", "green", 4, "mp4"),
             ("c", "what grows", "blue", 5, "mkv")]
    as_json(folder / "test_q.json", [{"video_name": name, "question": question, "question_id": f"v_{name}_1"}
                                     for name, question, *_ in asked])
    as_json(folder / "test_a.json", [{"answer": answer, "type": kind, "question_id": f"v_{name}_1"}
                                     for name, _, answer, kind, _ in asked])
    for (name, *_, end), colour in zip(asked, COLOURS, strict=False):
        film(folder / f"all_test/v_{name}.{end}", colour)


def msvd_qa(folder):
    asked = [(1, "what colour grows?", "red"), (2, "what colour grows?", "green"), (3, "who is seen?", "nobody")]
    as_json(folder / "test_qa.json", [{"answer": answer, "id": 100 + number, "question": question, "video_id": number}
                                      for number, question, answer in asked])
    lines(folder / "youtube_mapping.txt", [f"clip{number}_0_1 vid{number}" for number, *_ in asked])
    for (number, *_), colour in zip(asked, COLOURS, strict=False):
        film(folder / f"YouTubeClips/clip{number}_0_1.avi", colour)


# ---------------------------------------------------------------------------------------------------------------- audio


def fleurs(folder, language, name, texts):
    rows = [{"id": number, "num_samples": 4000, "path": f"{number}.wav", "audio": held(sound(300 + 100 * number), f"{number}.wav"),
             "transcription": text, "raw_transcription": text, "gender": 0, "lang_id": 0, "language": name,
             "lang_group_id": 0} for number, text in enumerate(texts)]
    parquet(folder / f"{language}/test-00000-of-00001.parquet", rows)


def fleurs_en(folder):
    fleurs(folder, "en_us", "English", ["the tone is low", "a tone of four hundred hertz", "it rises"])


def fleurs_zh(folder):
    fleurs(folder, "cmn_hans_cn", "Mandarin Chinese", ["声音很低", "声音在升高", "请听"])


def wenetspeech(folder, part):
    rows = [{"audio": held(sound(300 + 100 * number), f"{part}{number}.wav"), "text": text}
            for number, text in enumerate(["声音很低", "声音在升高", "请听"])]
    parquet(folder / f"data/test_{part}-00000-of-00001.parquet", rows)


def wenetspeech_net(folder):
    wenetspeech(folder, "net")


def wenetspeech_meeting(folder):
    wenetspeech(folder, "meeting")


def kespeech(folder):
    spoken = [("u1", "Mandarin", "声音很低"), ("u2", "Beijing", "声音在升高"), ("u3", "Beijing", "请听")]
    task = folder / "KeSpeech/Tasks/ASR/test"
    lines(task / "wav.scp", [f"{name} Audio/s1/phase1/{name}.wav" for name, *_ in spoken])
    lines(task / "text", [f"{name} {text}" for name, _, text in spoken])
    lines(task / "utt2subdialect", [f"{name} {dialect}" for name, dialect, _ in spoken])
    for number, (name, *_) in enumerate(spoken):
        path = folder / f"KeSpeech/Audio/s1/phase1/{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound(300 + 100 * number))


def covost2(folder, name, texts):
    rows = [{"path": f"clip{number}.wav", "sentence": sentence, "translation": translation, "client_id": "ours"}
            for number, (sentence, translation) in enumerate(texts)]
    table(folder / name, rows, "\t")
    (folder / "clips").mkdir()
    for number in range(len(rows)):
        (folder / f"clips/clip{number}.wav").write_bytes(sound(300 + 100 * number))


def covost2_zh2en(folder):
    covost2(folder, "covost_v2.zh-CN_en.test.tsv", [("声音很低。", "The tone is very low today."),
                                                    ("声音在升高。", "The tone rises and rises."),
                                                    ("请听。", "Please listen to the tone.")])


def covost2_en2zh(folder):
    covost2(folder, "covost_v2.en_zh-CN.test.tsv", [("The tone is low.", "今天声音很低。"),
                                                    ("The tone rises.", "声音一直在升高。"),
                                                    ("Please listen.", "请听这个声音。")])


def airbench_chat(folder):
    asked = [("speech_QA", "ours", "What is heard?", "A tone."), ("sound_QA", "ours", "Is it loud?", "No, it is soft."),
             ("speech_and_music_QA", "ours", "How many tones?", "One tone.")]
    rows = [{"path": f"{number}.wav", "question": question, "answer_gt": answer, "task_name": task,
             "dataset_name": source, "uniq_id": number, "meta_info": "a single soft tone"}
            for number, (task, source, question, answer) in enumerate(asked)]
    as_json(folder / "Chat/Chat_meta.json", rows)
    for number, (task, source, *_) in enumerate(asked):
        path = folder / f"Chat/{task}_{source}/{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound(300 + 100 * number))


def omnibench(folder):
    rows = [{"task type": ["Object Identification", "Object Identification", "Count and Quantity"][number],
             "audio type": "sound event", "question": "What is seen while the tone is heard?", "audio content": "a tone",
             "image content": f"a {colour} square", "audio_path": f"{number}.wav", "image_path": f"{number}.png",
             "index": number, "answer": colour, "options": [*COLOURS], "audio": held(sound(440), f"{number}.wav"),
             "image": held(picture(colour), f"{number}.png")}
            for number, colour in enumerate([*COLOURS][:3])]
    parquet(folder / "data/train-00000-of-00001.parquet", rows)


MAKERS = [
    mmlu, cmmlu, agieval, ceval, gaokao, mmbench_en, mmbench_cn, m3gia, seed_img, mme, mmmu, hallusionbench, realworldqa,
    mmvet, mathvista, textvqa, chartqa, ocrbench, mvbench, egoschema, videomme, perceptiontest, activitynet_qa, msvd_qa,
    fleurs_zh, fleurs_en, wenetspeech_net, wenetspeech_meeting, kespeech, covost2_zh2en, covost2_en2zh, airbench_chat,
    omnibench,
]


def make(rows):
    """Writes every benchmark's rows into its folder below `rows`, which is made anew."""
    shutil.rmtree(rows, ignore_errors=True)
    for maker in MAKERS:
        (rows / maker.__name__).mkdir(parents=True)
        maker(rows / maker.__name__)


if __name__ == "__main__":
    make(ROWS)
