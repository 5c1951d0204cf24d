"""ECGs that a model writes: in their grammar, as the slow way writes them, from words and behind a cut."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_ecg_lm import SHAPES
from test_sharing import MERGES, SIGNAL, TOKENIZER, signals

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import ecg_generation
from ecgbyte_cli.inference.batch_answering import Sampler
from ecgbyte_cli.inference.ecg_generation import Sampling, generate_ecgs
from ecgbyte_cli.model import ecg_lm, tiny
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages import draw as draw_stage

HEAD, PLAIN = [5, 6, 7], [4]
ANYWHERE = ECGTokenizer.from_dict(
    {
        "format": "ecgbyte-tokenizer",
        "format_version": 1,
        "signal": SIGNAL,
        "boundary": "none",
        "merges": MERGES,
    }
)


def model(positions="token", kind="llama", tokenizer=TOKENIZER):
    torch.manual_seed(0)
    base = SHAPES[kind]()
    layout = Layout.of(base.get_input_embeddings().num_embeddings, tokenizer, positions)
    return ecg_lm.ECGLM(base, tokenizer.vocab_size, layout=layout).eval()


@pytest.fixture(params=["token", "time"])
def lm(request):
    return model(request.param)


def next_scores(lm, ids):
    """The logits of the ECG token behind some ids, read all at once."""
    layout = lm.layout
    places = layout.positions(np.array([*ids, layout.offset + 1]))[: len(ids)]
    given = lm.inputs(torch.tensor(ids)[None], torch.from_numpy(places)[None])
    hidden = lm.base(**given, output_hidden_states=True).hidden_states[-1][0, -1]
    rows = lm.ecg_rows.weight[layout.first - layout.offset :]
    return (hidden / lm.scale @ rows.T).double()


def slowly(lm, head, draw, number):
    """An ECG written with the whole prompt read anew for every token, and one number drawn for each."""
    random, layout = np.random.default_rng([draw.seed, number]), lm.layout
    block, written = [layout.offset], []
    for lead in range(2):
        block.append(layout.offset + 2 + lead)
        left = 100
        while left:
            scores = next_scores(lm, [*head, *block])
            if draw.guidance != 1:
                without = next_scores(lm, [*PLAIN, *block])
                scores = without + draw.guidance * (scores - without)
            chances = (scores / draw.temperature).softmax(-1).detach().numpy()
            kept, before = np.zeros(len(chances)), 0.0
            for token in np.argsort(-chances, kind="stable"):
                kept[token] = chances[token] if before < draw.top_p else 0
                before += chances[token]
            token = int(np.searchsorted(np.cumsum(kept), random.random() * kept.sum(), side="right"))
            # of a token that is too long the beginning, as it would be cut by itself
            letters = TOKENIZER.letters_of(token)[:left]
            some = (
                [token]
                if len(letters) == TOKENIZER.lengths[token]
                else TOKENIZER.encode(letters[None]).tolist()
            )
            left -= len(letters)
            block += [layout.first + i for i in some]
            written += some
    return written


@pytest.mark.parametrize("draw", [Sampling(seed=3), Sampling(0.7, 0.6, 1), Sampling(1.0, 0.9, 2, 2.5)])
def test_what_is_written_is_what_the_slow_way_writes(lm, draw):
    made = [*generate_ecgs(lm, TOKENIZER, HEAD, range(3), draw, plain=PLAIN)]
    assert made[2].tolist() == slowly(lm, HEAD, draw, 2)
    assert len({ids.tobytes() for ids in made}) == 3


@pytest.mark.parametrize("kind", SHAPES)
def test_every_lead_has_its_length_whatever_the_model(kind):
    for ids in generate_ecgs(model(kind=kind), TOKENIZER, HEAD, range(4), Sampling(3.0)):
        assert TOKENIZER.decode(ids).shape == (2, 100)
        # no token lies on two leads
        assert 100 in np.cumsum(TOKENIZER.lengths[ids])


def test_tokens_that_may_lie_on_two_leads_fill_the_segment():
    for ids in generate_ecgs(model(tokenizer=ANYWHERE), ANYWHERE, HEAD, range(4), Sampling(2.0)):
        assert ANYWHERE.decode(ids).shape == (2, 100)


def test_an_ecg_does_not_depend_on_those_beside_it(lm):
    both = [*generate_ecgs(lm, TOKENIZER, HEAD, [0, 1, 7], Sampling())]
    (alone,) = generate_ecgs(lm, TOKENIZER, HEAD, [7], Sampling())
    assert both[2].tolist() == alone.tolist()
    (other,) = generate_ecgs(lm, TOKENIZER, HEAD, [7], Sampling(seed=1))
    assert other.tolist() != alone.tolist()


def test_what_is_given_stays(lm):
    letters = TOKENIZER.letters(signals(1)[0])
    for ids in generate_ecgs(lm, TOKENIZER, HEAD, range(3), Sampling(), letters[:, :60]):
        assert np.array_equal(TOKENIZER.decode(ids)[:, :60], letters[:, :60])
    (ids,) = generate_ecgs(lm, TOKENIZER, HEAD, [0], Sampling(), letters)
    assert np.array_equal(TOKENIZER.decode(ids), letters)


def test_a_cut_does_not_end_a_token_that_would_go_on():
    """Tokens are 3 4, 4 3, 3 3, 4 4 and 3 3 3 3: a 3 at the end may be the beginning of one of three."""
    tokens, rest = ecg_generation.tokenize_start(TOKENIZER, np.array([1, 3, 4, 3], np.uint8), "longest")
    assert tokens.tolist() == [1, 8] and rest.tolist() == [3]
    tokens, rest = ecg_generation.tokenize_start(TOKENIZER, np.array([1, 3, 3, 3], np.uint8), "longest")
    assert tokens.tolist() == [1] and rest.tolist() == [3, 3, 3]  # not 3 3, 3
    tokens, rest = ecg_generation.tokenize_start(TOKENIZER, np.array([3, 4, 7, 1], np.uint8), "longest")
    assert rest.tolist() == [] and tokens.tolist() == [8, 7, 1]  # no token begins with 1
    fits = ecg_generation.compatible_tokens(TOKENIZER, np.array([3, 4], np.uint8))
    assert np.flatnonzero(fits).tolist() == [3, 8]  # 3 alone, and 3 4


def test_an_ecg_longer_than_the_model_reads_is_a_failure(monkeypatch):
    monkeypatch.setattr(ecg_generation, "max_positions", lambda lm: 40)
    with pytest.raises(Failure, match="can read 40 tokens"):
        list(generate_ecgs(model(), TOKENIZER, HEAD, [0], Sampling()))


def test_a_model_whose_marks_are_not_those_of_its_leads_writes_nothing():
    lm = model()
    lm.layout.marks = 1
    with pytest.raises(Failure, match="marks for 1 leads"):
        list(generate_ecgs(lm, TOKENIZER, HEAD, [0], Sampling()))


def test_weights_that_are_no_numbers_are_a_failure():
    lm = model()
    with torch.no_grad():
        lm.ecg_rows.weight.fill_(torch.nan)
    with pytest.raises(Failure, match="NaN"):
        list(generate_ecgs(lm, TOKENIZER, HEAD, [0], Sampling()))


def test_the_end_of_a_lead_is_drawn_as_its_middle_is():
    """A token that is too long gives its beginning: a model that draws one kind of token alone writes no other."""
    tokenizer = ECGTokenizer.from_dict(
        {
            **{"format": "ecgbyte-tokenizer", "format_version": 1, "boundary": "lead"},
            **{"signal": SIGNAL, "merges": [[3, 3], [8, 3]]},  # 3 3, and 3 3 3
        }
    )
    lm = model(tokenizer=tokenizer)
    likely = lm.layout.first - lm.layout.offset + 9
    with torch.no_grad():  # whatever it reads, the longest token is by far the likeliest
        lm.following = lambda ids, *_: torch.eye(10)[[9] * len(ids)] * 50
    (ids,) = generate_ecgs(lm, tokenizer, HEAD, [0], Sampling())
    assert likely and (tokenizer.decode(ids) == 3).all() and 100 % 3


def test_a_token_of_no_chance_is_never_drawn():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 3)
    assert ecg_generation._sample_tokens(scores, Sampling(), [0.0, 0.5, 1 - 2**-53]) == [1, 1, 1]
    scores = torch.log(torch.tensor([[0.3, 0.6, 0.1]] * 2))
    assert ecg_generation._sample_tokens(scores, Sampling(top_p=0.8), [0.0, 0.999]) == [0, 1]


def test_answers_are_text_whatever_the_temperature(lm):
    """A thousand answers, drawn so hot that all ids are about as likely: none is an ECG's."""
    pick, drawn = Sampler(50.0, 0), []
    for first in range(0, 1000, 100):
        pick.begin([("signal", number, 0) for number in range(first, first + 100)])
        ecg = lm.layout.block(TOKENIZER.encode(signals(1)[0]))
        drawn += lm.answer([np.array([*HEAD, *ecg, 8, 9])] * 100, {2}, 12, pick)
    assert len(drawn) == 1000
    ids = np.concatenate([np.array(answer) for answer in drawn])
    assert len(ids) > 5000 and len(np.unique(ids)) > 250 and ids.max() < lm.offset


def test_limb_leads_agree():
    random = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    leads = ["I", "II", "III", "aVR", "aVL", "V1"]
    made = draw_stage.consistent(random, leads)
    assert np.allclose(made[2], random[1] - random[0]) and np.allclose(
        made[4], random[0] - random[1] / 2, atol=1e-6
    )
    assert np.array_equal(made[[0, 1, 5]], random[[0, 1, 5]])
    # without I and II: as it is
    assert np.array_equal(draw_stage.consistent(random[2:], leads[2:]), random[2:])


@pytest.fixture(scope="module")
def drawing(small, tmp_path_factory):
    """A work folder whose model was trained to draw, for a moment, beside the records of `small`."""
    from click.testing import CliRunner

    from ecgbyte_cli.__main__ import main

    work = tmp_path_factory.mktemp("drawing") / "work"
    for name in ("symbols", "tokenizer", "tokens"):
        shutil.copytree(small / "ecgbyte-work" / name, work / name)
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        "tiny",
        "--steps",
        6,
        "--draw",
        "rhythm",
    ]
    result = CliRunner().invoke(main, ["--work", str(work), *map(str, args), "--debug"])
    assert result.exit_code == 0, result.stderr
    return work


def test_drawing_writes_records_that_say_what_they_are(ecgbyte, drawing, tmp_path):
    out = tmp_path / "drawn"
    args = ["draw", "atrial fibrillation", "--records", 3, "--out", out, "--json"]
    result = ecgbyte(*args, work=drawing)
    assert result.exit_code == 0, result.stderr
    assert {"records", "files", "seconds"} <= json.loads(result.stdout).keys()
    records = [readers.read_recording(path) for path in sorted(out.glob("*.hea"))]
    assert [record.signal.shape for record in records] == [(2, 1000)] * 3
    said = "\n".join(records[0].comments)
    assert "Generated by ecgbyte" in said and "atrial fibrillation" in said and "Model: model " in said
    assert (out / "drawn.png").stat().st_size > 10_000
    again = ecgbyte(*args, work=drawing)
    assert again.exit_code == 0 and "already" in again.stderr
    more = ecgbyte(*args[:2], "--records", 2, "--out", tmp_path / "two", work=drawing)
    assert more.exit_code == 0
    assert np.array_equal(readers.read_recording(tmp_path / "two" / "drawn00002").signal, records[1].signal)


@pytest.mark.parametrize(
    ("words", "out", "said"),
    [
        ("a broken heart", "new", 'not trained to draw "a broken heart"; it can draw: '),
        ("atrial fibrillation", "full", "contains files other than"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(ecgbyte, drawing, tmp_path, words, out, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    result = ecgbyte("draw", words, "--out", tmp_path / out, "--overwrite", work=drawing)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1) and said in result.stderr
    assert not (tmp_path / "new").exists() and (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_a_model_that_was_not_trained_to_draw_says_so(ecgbyte, small, tmp_path):
    for args in (
        ["draw", "sinus rhythm", "--out", tmp_path / "out"],
        ["continue", small / "data" / "synth00001"],  # its --ecg-loss was 0
    ):
        result = ecgbyte(*args, work=small / "ecgbyte-work")
        assert result.exit_code == 1 and "was not trained to" in result.stderr and "finetune" in result.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--draw", "weather"], "no training question of this type"),
        (["--draw", "rhythm", "--ecg-loss", 0], "--ecg-loss"),
    ],
)
def test_what_cannot_be_learned_is_said_in_a_line(ecgbyte, small, more, said):
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        "tiny",
        "--steps",
        1,
        "--overwrite",
        *more,
    ]
    result = ecgbyte(*args, work=small / "ecgbyte-work")
    assert result.exit_code == 1 and said in result.stderr and "Traceback" not in result.stderr


def test_continuing_keeps_what_was_recorded(ecgbyte, drawing, small, tmp_path):
    record = small / "data" / "synth00001"
    args = ["continue", record, "--from", 6, "--samples", 2, "--out", tmp_path / "on", "--json"]
    result = ecgbyte(*args, work=drawing)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["records"] == 2 and {*told["rmse_uv"]} == {
        *("continuations", "mean of the continuations", "last beat repeated", "flat line")
    }
    tokenizer = ECGTokenizer.from_file(drawing / "model" / "ecg_tokenizer.json")
    from ecgbyte_cli.signal.preprocess import segments

    ((_, truth),) = segments(readers.read_recording(record), tokenizer.signal)
    two = [readers.read_recording(path).signal for path in sorted((tmp_path / "on").glob("*.hea"))]
    letters = tokenizer.to_mv(*tokenizer.quantize(truth))
    for made in two:
        assert made.shape == truth.shape and np.allclose(made[:, :600], letters[:, :600], atol=1e-3)
    assert not np.array_equal(two[0][:, 600:], two[1][:, 600:])
    assert (tmp_path / "on" / "continued.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("since", "said"),
    [
        (10, "no whole segment"),
        (9.999, "too close to"),
        (0.001, "too close to"),
        ("nan", "no whole"),
        (300, "no whole"),
    ],
)
def test_a_cut_that_leaves_nothing_is_a_line(ecgbyte, drawing, small, since, said):
    result = ecgbyte("continue", small / "data" / "synth00001", "--from", since, work=drawing)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1) and said in result.stderr


def test_guesses_are_what_they_say():
    from importlib import import_module

    stage = import_module("ecgbyte_cli.stages.continue_")
    fs, t = 100, np.arange(1000) / 100
    beat = np.exp(-(((t % 0.8) - 0.4) ** 2) / (2 * 0.012**2))  # repeats every 0.8 s, exactly
    truth = np.stack([beat, -0.5 * beat])
    told = stage.errors(truth, truth[None], 560, fs)
    assert told["continuations"] == 0 and told["last beat repeated"] < 1e-3
    assert told["flat line"] == pytest.approx(1000 * np.sqrt(np.square(truth[:, 560:]).mean()), rel=1e-3)
    assert stage.errors(np.zeros((2, 1000)), np.zeros((1, 2, 1000)), 560, fs)["last beat repeated"] is None


def test_an_adapter_learns_to_draw_and_is_exported_as_before(ecgbyte, small, tmp_path):
    from test_finetune import as_tiny, untrained

    base, work = as_tiny(tiny.build_tiny(), tmp_path / "base"), untrained(small, tmp_path / "work")
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        base,
        "--method",
        "lora",
        "--steps",
        2,
    ]
    assert (
        "--ecg-loss" in ecgbyte(*args, "--draw", "rhythm", work=work).stderr
    )  # its default is none for adapters
    result = ecgbyte(*args, "--draw", "rhythm", "--ecg-loss", 0.3, work=work)
    assert result.exit_code == 0, result.stderr
    # a language model may know other words: it is told, and draws
    result = ecgbyte("draw", "a slow heart", "--records", 1, "--out", tmp_path / "drawn", work=work)
    assert result.exit_code == 0 and "may show anything" in result.stderr
    assert readers.read_recording(tmp_path / "drawn" / "drawn00001").signal.shape == (2, 1000)
    assert (
        ecgbyte(
            "chat", small / "data" / "synth00001", "-q", "What is the rhythm?", "--max-new", 2, work=work
        ).exit_code
        == 0
    )
    result = ecgbyte("export", tmp_path / "exported", work=work)
    assert result.exit_code == 0, result.stderr


def test_what_is_learned_of_a_drawing_is_the_ecg_alone(small):
    """Its words stand in front; every ECG token is a label, and nothing else is."""
    from ecgbyte_cli.model.prompt import DRAW, IGNORED, Prompt
    from ecgbyte_cli.questions import Question
    from ecgbyte_cli.storage.workdir import WorkDir
    from ecgbyte_cli.training.dataset import SampleBuilder

    work = WorkDir(small / "ecgbyte-work")
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    base, text_tokenizer = tiny.build_tiny(texts=tiny.training_texts("tiny"))
    layout = Layout.of(base.get_input_embeddings().num_embeddings, tokenizer)
    samples = SampleBuilder(work, Prompt(text_tokenizer, layout), tokenizer, 4096, "trim", 1.0, draw="rhythm")
    asked = [
        Question("r", "What is the rhythm?", "sinus rhythm", "rhythm", "train", segments=(3,)),
        Question("r", "Is it fast?", "no", "rate", "train", segments=(3,)),
        Question("r", "Which is faster?", "the first", "rhythm", "train", segments=(3, 4)),
    ]
    plans, _, _ = samples.plans(asked)
    (drawn,) = [plan for plan in plans if plan.words is not None]
    made = samples.reading(drawn, "no signal", np.random.default_rng(0))  # neither left out nor varied
    block = layout.block(samples.own(3))
    assert made.ids[-len(block) :].tolist() == block.tolist()
    assert text_tokenizer.decode(made.ids[: -len(block)]) == f"<bos>{DRAW.format('sinus rhythm')}\n"
    is_token = made.ids >= layout.first
    assert (
        np.array_equal(made.labels, np.where(is_token, made.ids, IGNORED)) and len(made.ids) == drawn.length
    )
    samples.max_length = drawn.length - 1
    assert samples.to_draw(asked) == ([], 1)


def test_a_cut_so_early_that_no_beat_is_known_has_no_beat_to_repeat(ecgbyte, drawing, small, tmp_path):
    args = [
        "continue",
        small / "data" / "synth00001",
        "--from",
        0.2,
        "--samples",
        1,
        "--out",
        tmp_path / "on",
        "--json",
    ]
    result = ecgbyte(*args, work=drawing)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rmse_uv"]["last beat repeated"] is None


def test_another_recording_of_the_same_name_is_another(ecgbyte, drawing, small, tmp_path):
    args = ["continue", tmp_path / "r", "--samples", 1, "--out", tmp_path / "on"]
    for ending in (".hea", ".dat"):
        source = (small / "data" / f"synth00001{ending}").read_bytes()
        (tmp_path / f"r{ending}").write_bytes(source.replace(b"synth00001", b"r"))
    assert ecgbyte(*args, work=drawing).exit_code == 0
    assert "already" in ecgbyte(*args, work=drawing).stderr
    (tmp_path / "r.dat").write_bytes((small / "data" / "synth00002.dat").read_bytes())
    result = ecgbyte(*args, work=drawing)
    assert result.exit_code == 1 and "other settings (record)" in result.stderr


def test_drawing_goes_on_where_it_stopped(ecgbyte, drawing, tmp_path, monkeypatch):
    args = ["draw", "sinus rhythm", "--records", 4, "--out"]
    assert ecgbyte(*args, tmp_path / "whole", work=drawing).exit_code == 0
    kept = draw_stage.write_record

    def stops(folder, name, *rest):
        if name == "drawn00003":
            raise KeyboardInterrupt
        kept(folder, name, *rest)

    monkeypatch.setattr(draw_stage, "write_record", stops)
    assert ecgbyte(*args, tmp_path / "parts", work=drawing).exit_code == 1
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "parts").glob("*.hea")) == ["drawn00001.hea", "drawn00002.hea"]
    other = ecgbyte(*args, tmp_path / "parts", "--seed", 1, work=drawing)
    assert other.exit_code == 1 and "other settings (seed)" in other.stderr
    result = ecgbyte(*args, tmp_path / "parts", work=drawing)
    assert result.exit_code == 0 and "resuming, 2 of 4" in result.stderr
    for path in (tmp_path / "whole").glob("*.dat"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


@pytest.mark.parametrize("option", ["--temperature", "--top-p"])
def test_numbers_that_are_none_are_a_line(ecgbyte, drawing, small, tmp_path, option):
    for command in (
        ["draw", "sinus rhythm", "--out", tmp_path / "a"],
        ["continue", small / "data" / "synth00001"],
    ):
        result = ecgbyte(*command, option, "nan", work=drawing)
        assert (
            result.exit_code == 1 and result.stderr.count("\n") == 1 and " must be numbers" in result.stderr
        )


def test_a_model_that_goes_on_learning_still_draws(ecgbyte, drawing, small, tmp_path):
    from test_finetune import untrained

    work = untrained(small, tmp_path / "work")
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        drawing / "model",
        "--steps",
        1,
        "--batch",
        1,
    ]
    result = ecgbyte(*args, "--ecg-loss", 0, "--json", work=work)
    assert result.exit_code == 0, result.stderr
    assert ecgbyte("draw", "sinus rhythm", "--records", 1, "--out", tmp_path / "a", work=work).exit_code == 0
    assert ecgbyte("continue", small / "data" / "synth00001", "--samples", 1, work=work).exit_code == 0
    # a step of drawings alone has no loss of text, and says so as JSON has it
    args[4] = "tiny"
    result = ecgbyte(*args, "--draw", "rhythm", "--seed", 3, "--overwrite", "--json", work=work)
    assert result.exit_code == 0, result.stderr
    json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
