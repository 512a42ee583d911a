"""Pipelines from text and TOML: what they mean, and what every mistake gets."""

from pathlib import Path

import pytest

from onnxopt.errors import OptionError
from onnxopt.passes import ALL
from onnxopt.passes.cleanup.fold_constants import FoldConstants
from onnxopt.passes.cleanup.remove_no_ops import RemoveNoOps
from onnxopt.recipes import description, names, parse_pipeline, recipe


def test_text_names_passes_with_options() -> None:
    assert parse_pipeline("remove-no-ops, fold-constants{max_growth=10, include=[Conv*, 'a b'], exclude=[]}") == [
        RemoveNoOps(),
        FoldConstants(max_growth=10, include=("Conv*", "a b")),
    ]


def test_a_recipe_in_a_pipeline_stands_for_its_passes() -> None:
    assert parse_pipeline("cleanup,remove-no-ops") == [*recipe("cleanup"), RemoveNoOps()]


def test_text_of_a_pass_reads_back() -> None:
    pass_ = FoldConstants(max_growth=7, exclude=("a*",))
    assert parse_pipeline(str(pass_)) == [pass_]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("remove-no-op", "did you mean 'remove-no-ops'"),
        ("cleanp", "did you mean 'cleanup'"),
        ("fold-constants{max_growht=1}", "did you mean 'max_growth'"),
        ("fold-constants{max_growth=many}", "Expected `int`, got `str`"),
        ("fold-constants{max_growth=-1}", "max_growth is a number of bytes, got -1"),
        ("fold-constants{max_growth=1", "not closed"),
        ("fold-constants{=}", "cannot read the options"),
        ("fold-constants remove-no-ops", "comma is missing"),
        ("cleanup{a=1}", "takes no options"),
        ("{}", "cannot read the pipeline"),
        ("no-such.toml", "no recipe is called"),
    ],
)
def test_mistakes_in_text(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("|", r"\|")):
        parse_pipeline(text)


def test_recipes_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[pass]]\nname = "fold-constants"\nmax_growth = 3\n', encoding="utf-8")
    assert recipe(path) == [FoldConstants(max_growth=3)]
    assert parse_pipeline(f"{path},remove-no-ops") == [FoldConstants(max_growth=3), RemoveNoOps()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[pass]]\nname = ", "not valid"),
        ("[[pass]]\nmax_growth = 1\n", "pass 1: a pass needs a name"),
        ('[[pass]]\nname = "remove-no-ops"\n[[pass]]\nname = "x"\n', "no pass is called 'x'"),
        ('[[pass]]\nname = "remove-no-ops"\nfoo = 1\n', "pass 1: remove-no-ops has no option 'foo'"),
        ("steps = 3\n", "not valid"),
        ("", "not valid"),
    ],
)
def test_mistakes_in_toml(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        recipe(path)


@pytest.mark.parametrize("name", names())
def test_bundled_recipes_are_valid_and_described(name: str) -> None:
    assert recipe(name)
    assert description(name)


def test_names_of_passes_and_recipes_differ() -> None:
    assert not set(names()) & {pass_.name for pass_ in ALL}


def test_the_recipe_for_primitives_is_cleanup_without_fusions_into_newer_operators() -> None:
    fewer = [pass_.name for pass_ in recipe("cleanup-primitives")]
    missing = [pass_.name for pass_ in recipe("cleanup") if pass_.name not in fewer]
    assert fewer == [pass_.name for pass_ in recipe("cleanup") if pass_.name in fewer]
    assert {"fuse-layer-norm", "fuse-gelu", "fuse-attention"} <= set(missing)
    assert all(name.startswith("fuse-") for name in missing)


def test_a_pattern_needs_no_quotes() -> None:
    (pass_,) = parse_pipeline("prune-weights{pattern=2:4}")
    assert pass_.options() == {"pattern": "2:4"}
    assert parse_pipeline(str(pass_)) == [pass_]
