"""A configuration error is reported in one line, with exit code 2, and suggests allowed names."""

import pytest

from rgtrain.errors import ConfigError, choose_from, exit_on_config_error


def test_a_config_error_prints_one_line_to_stderr_and_exits_with_code_2(capsys):
    with pytest.raises(SystemExit) as exit, exit_on_config_error():
        raise ConfigError("unknown reward 'lenght'")
    assert exit.value.code == 2
    assert capsys.readouterr() == ("", "error: unknown reward 'lenght'\n")


def test_a_command_can_transform_the_message(capsys):
    with pytest.raises(SystemExit), exit_on_config_error(transform=lambda text: text.replace("SECRET", "***")):
        raise ConfigError("the key SECRET is refused")
    assert capsys.readouterr().err == "error: the key *** is refused\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a disk"), KeyboardInterrupt()])
def test_other_errors_propagate(error):
    with pytest.raises(type(error)), exit_on_config_error():
        raise error


def test_nothing_happens_without_an_error(capsys):
    with exit_on_config_error():
        pass
    assert capsys.readouterr() == ("", "")


def test_the_closest_name_is_suggested_first():
    assert choose_from("lenght", ["format", "length"]) == "did you mean 'length'? (choose from: format, length)"


def test_without_a_close_name_the_allowed_names_are_listed_in_order():
    assert choose_from("xyz", ["length", "accuracy"]) == "(choose from: accuracy, length)"


def test_a_name_that_is_not_a_string_lists_the_allowed_names():
    assert choose_from(3, ["length"]) == "(choose from: length)"


def test_only_a_few_of_many_names_are_listed():
    names = [f"dataset_{number}" for number in range(100)]
    near = choose_from("dataset_42x", names)
    assert near.startswith("did you mean 'dataset_42' or ") and "(100 names are known, such as dataset_42, " in near
    assert choose_from("xyz", names, max_names=2) == "(100 names are known, such as dataset_0, dataset_1)"
