"""Options: defaults and help of all commands; mixed question files, types, adapters, rates, prompts, seeds."""

import dataclasses
import importlib
import json
import shutil

import click
import click.testing
import numpy as np
import pytest
import torch

from ecgbyte_cli.__main__ import COMMANDS, main
from ecgbyte_cli.evaluation import metrics, report
from ecgbyte_cli.model import model_folder
from ecgbyte_cli.model import tiny as tiny_module
from ecgbyte_cli.stages.finetune import FinetuneOptions
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.optimizer import make_optimizer
from ecgbyte_cli.training.plans import read_samples
from ecgbyte_cli.training.setup import load_for_training

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


BRIEF = ("--batch", 1, "--max-length", 80)  # a training of short prompts

# options that a command handles itself, before it calls its function
APART = {"finetune": {"show", "seeds"}, "generate": {"seeds"}, "reinforce": {"show"}}


def options_class(command):
    """Return the dataclass of a command's options, defined in its stage file, or None."""
    module = importlib.import_module(command.callback.__module__)
    classes = [
        value
        for name, value in vars(module).items()
        if name.endswith("Options")
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
    ]
    assert len(classes) <= 1
    return classes[0] if classes else None


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_their_defaults_from_one_place(name):
    command = main.get_command(None, name)
    options = options_class(command)
    if options is None:
        assert name not in (
            "synth",
            "questions",
            "symbolize",
            "learn",
            "encode",
            "decode",
            "import-tokenizer",
        )
        return
    ctx = click.Context(command)
    defaults = {}
    for param in command.params:
        if isinstance(param, click.Option) and param.expose_value and param.name not in APART.get(name, ()):
            default = param.get_default(ctx)
            # newer versions of Click have a mark for an option without a default, which becomes None
            unset = "UNSET" in repr(default)
            defaults[param.name] = param.type_cast_value(ctx, None if unset else default)
    assert defaults == {field.name: field.default for field in dataclasses.fields(options)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        options().overwrite = True


@pytest.mark.parametrize("name", ["symbolize", "finetune", "generate"])
def test_help_shows_every_option_once_and_in_groups(name):
    command = main.get_command(None, name)
    text = click.testing.CliRunner().invoke(main, [name, "--help"], terminal_width=200).stdout
    shown = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  -")]
    names = [param.opts[0] for param in command.params if isinstance(param, click.Option)]
    assert sorted(shown) == sorted([*names, "-h"])
    assert "\n  DATA..." not in text  # an argument is not an option
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [*(f"{title}:" for title in command.groups), "Running:"] and len(titles) >= 4


def test_help_lists_every_command_once_in_groups():
    lines = click.testing.CliRunner().invoke(main, ["--help"], terminal_width=200).stdout.splitlines()
    groups = list(dict.fromkeys(group for group, _ in COMMANDS.values()))
    assert [line[:-1] for line in lines if line.endswith(":")] == ["Options", *groups]
    for name, (group, summary) in COMMANDS.items():
        [place] = [i for i, line in enumerate(lines) if line.split()[:1] == [name]]
        assert lines[place].endswith(summary)
        assert [line[:-1] for line in lines[:place] if line.endswith(":")][-1] == group


@pytest.fixture
def work(small, tmp_path):
    copy = tmp_path / "work"
    shutil.copytree(
        small / "ecgbyte-work", copy, ignore=shutil.ignore_patterns("model", "answers", "training")
    )
    return copy


@pytest.fixture
def two_files(small, tmp_path):
    """The small folder's questions, those about the rhythm and the others."""
    lines = (small / "data" / "qa.jsonl").read_text().splitlines(keepends=True)
    parts = [line for line in lines if json.loads(line)["type"] == "rhythm"]
    (tmp_path / "rhythm.jsonl").write_text("".join(parts))
    (tmp_path / "others.jsonl").write_text("".join(line for line in lines if line not in parts))
    return tmp_path / "rhythm.jsonl", tmp_path / "others.jsonl"


def samples_of(small):
    settings = vars(FinetuneOptions()) | {"base": "tiny", "method": "full", "lr": 1e-3}
    return load_for_training(WorkDir(small / "ecgbyte-work"), settings, "cpu")[2]


def test_a_weight_is_how_often_a_file_is_read_in_an_epoch(small, two_files):
    work, (rhythm, others) = WorkDir(small / "ecgbyte-work"), list(map(str, two_files))

    def counted(qa, weights):
        plans, validation, _ = read_samples(work, qa, samples_of(small), 0, print, weights=weights)
        asked = [question.type for plan in plans for question in plan.questions]
        return asked.count("rhythm"), len(asked) - asked.count("rhythm"), len(validation), len(plans)

    together, once = counted([rhythm, others], None), counted([rhythm, others], [1.0, 1.0])
    assert together[:3] == once[:3] and together[3] < once[3]  # together they share readings of their ECGs
    assert counted([rhythm, others], [2.0, 1.0])[:3] == (2 * once[0], *once[1:3])
    half = counted([rhythm, others], [1.5, 0.5])
    assert half[0] == round(1.5 * once[0]) and 0.3 < half[1] / once[1] < 0.7 and half[2] == once[2]


def test_several_files_are_learned_and_asked_again(small, two_files, work, ecgbyte):
    rhythm, others = two_files
    args = [
        "finetune",
        "--qa",
        f"{rhythm}:2",
        "--qa",
        others,
        "--model",
        "tiny",
        "--steps",
        2,
        *BRIEF,
        "--json",
    ]
    result = ecgbyte(*args, work=work)
    assert result.exit_code == 0, result.stderr
    about = json.loads((work / "model" / "ecgbyte.json").read_text())
    assert about["settings"]["weights"] == [2.0, 1.0] and len(about["settings"]["qa"]) == 2
    assert about["qa"] == [str(rhythm), str(others)]
    other = ecgbyte(*args[:2], rhythm, *args[3:], work=work)
    assert other.exit_code == 1 and "other settings (weights)" in other.stderr
    answered = ecgbyte("generate", "--limit", 4, "--no-controls", "--max-new", 3, "--json", work=work)
    assert answered.exit_code == 0 and json.loads(answered.stdout)["questions"] == 4, answered.stderr


def test_types_are_taken_alone(small, work, ecgbyte):
    qa = small / "data" / "qa.jsonl"
    args = ["finetune", "--qa", qa, "--model", "tiny", "--steps", 2, *BRIEF, "--types", "rhythm"]
    assert ecgbyte(*args, work=work).exit_code == 0
    assert json.loads((work / "model" / "ecgbyte.json").read_text())["settings"]["types"] == ["rhythm"]
    answered = ecgbyte(
        *("generate", "--types", "rhythm,rate", "--limit", 9, "--no-controls", "--max-new", 3, "--json"),
        work=work,
    )
    # the model has learned nothing about the rate, and declines it
    assert set(json.loads(answered.stdout)["by_type"]) == {"rhythm"}, answered.stderr
    assert "was not trained on" in answered.stderr
    wrong = ecgbyte("generate", "--types", "rythm", "--overwrite", work=work)
    assert (
        wrong.exit_code == 1 and "no question is of type rythm; there are lbbb, rate, rhythm" in wrong.stderr
    )


def test_adapters_and_rates_are_as_they_are_told(small, tmp_path, work, ecgbyte):
    base, text_tokenizer = tiny_module.build_tiny()
    base.save_pretrained(tmp_path / "base"), text_tokenizer.save_pretrained(tmp_path / "base")
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", tmp_path / "base", "--method", "lora"]
    args += ["--steps", 2, *BRIEF, "--rows-lr", 1e-3, "--weight-decay", 0.2]
    result = ecgbyte(*args, "--rank", 3, "--alpha", 5.5, work=work)
    assert result.exit_code == 0, result.stderr
    said = json.loads((work / "model" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (3, 5.5)
    lm = model_folder.load_model(work / "model", "cpu", trainable=True)[0]
    groups = make_optimizer(
        lm, {"method": "lora", "lr": 2e-4, "rows_lr": 1e-3, "weight_decay": 0.2}
    ).param_groups
    assert groups[2]["params"][0] is lm.ecg_rows.weight and groups[2]["times"] == pytest.approx(5)
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0, 0.2]
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in lm.parameters())
    shutil.move(work / "model", tmp_path / "first")
    again = ecgbyte(*args[:3], "--model", tmp_path / "first", "--rank", 4, work=work)
    assert again.exit_code == 1 and "remove --rank" in again.stderr


def test_the_rows_learn_at_their_own_rate(small, work, ecgbyte):
    """Where it is next to nothing they stay, and the rest of the model does not."""
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 3, "--ecg-loss", 0]
    args += BRIEF
    assert ecgbyte(*args, "--rows-lr", 1e-12, "--weight-decay", 0, work=work).exit_code == 0
    lm, _, tokenizer, about = model_folder.load_model(work / "model", "cpu")
    settings = vars(FinetuneOptions()) | {"base": "tiny", "method": "full", "lr": 1e-3}
    torch.manual_seed(0)
    first = load_for_training(WorkDir(work), settings, "cpu")[0]
    torch.testing.assert_close(lm.ecg_rows.weight, first.ecg_rows.weight, atol=1e-9, rtol=0)
    moved = [
        (a - b).abs().max().item() for a, b in zip(lm.base.parameters(), first.base.parameters(), strict=True)
    ]
    assert np.mean([m > 1e-4 for m in moved]) > 0.5


def test_a_system_prompt_is_learned_and_kept(small, tmp_path, work, ecgbyte):
    base, text_tokenizer = tiny_module.build_tiny()
    text_tokenizer.chat_template = CHATML
    text_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    base.resize_token_embeddings(len(text_tokenizer))
    base.save_pretrained(tmp_path / "base"), text_tokenizer.save_pretrained(tmp_path / "base")
    qa = small / "data" / "qa.jsonl"
    args = ["finetune", "--qa", qa, "--model", tmp_path / "base", "--method", "lora", "--system", "Be brief."]
    shown = ecgbyte(*args, "--show", 1, work=work)
    assert "Be brief." in shown.stdout and "You read electrocardiograms" not in shown.stdout, shown.stderr
    assert ecgbyte(*args, "--steps", 1, "--batch", 1, work=work).exit_code == 0
    assert json.loads((work / "model" / "ecgbyte.json").read_text())["system"] == "Be brief."
    exported = ecgbyte("export", tmp_path / "out", work=work)
    assert exported.exit_code == 0 and "Be brief." in (tmp_path / "out" / "README.md").read_text(), (
        exported.stderr
    )
    tiny = ecgbyte(
        "finetune", "--qa", qa, "--model", "tiny", "--system", "Be brief.", "--overwrite", work=work
    )
    assert tiny.exit_code == 1 and "no chat template" in tiny.stderr


def test_several_seeds_are_trained_and_scored_together(small, work, ecgbyte):
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 2, "--seed", 5]
    args += [*BRIEF, "--seeds", 2]
    asked = ["generate", "--limit", 9, "--max-new", 3, "--seeds", 2, "--json"]
    none = ecgbyte(*args[:-1], 1, *asked, work=work)
    assert none.exit_code == 1 and "seeds/1/model" in none.stderr
    result = ecgbyte(*args, *asked, work=work)
    assert result.exit_code == 0, result.stderr
    scored = json.loads(result.stdout)["seeds"] if "seeds" in json.loads(result.stdout) else None
    scored = scored or json.loads((work / "answers" / "metrics.json").read_text())["result"]["seeds"]
    models = [work / "model", work / "seeds" / "1" / "model"]
    assert [json.loads((m / "ecgbyte.json").read_text())["settings"]["seed"] for m in models] == [5, 6]
    each = [json.loads((m.parent / "answers" / "metrics.json").read_text())["result"] for m in models]
    assert scored["exact_match"]["values"] == [one["exact_match"] for one in each]
    assert scored["difference"]["mean"] == pytest.approx(np.mean([one["difference"] for one in each]))


def test_the_interval_over_seeds_is_students():
    results = [{"exact_match": v, "difference": v - 30, "by_type": {"a": v}} for v in (80.0, 82.0, 87.0)]
    over = metrics.summarize_seeds(results)
    # mean 83, sd 3.606, 4.303 of them over sqrt 3
    assert over["exact_match"]["mean"] == 83 and over["difference"]["mean"] == 53
    assert over["by_type"]["a"]["interval"] == pytest.approx([83 - 8.957, 83 + 8.957], abs=1e-3)
    lines, header = report.seed_table(over)
    assert [line[0] for line in lines] == ["a", "all", "gain"] and len(header) == len(lines[0])
