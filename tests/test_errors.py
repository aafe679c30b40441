"""An error of the user's input is one line and exit code 2, and names the nearest allowed names."""

import pytest

from rgtrain.errors import ConfigError, choose_from, exit_on_config_error


def test_a_config_error_is_one_line_on_stderr_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit, exit_on_config_error():
        raise ConfigError("unknown reward 'lenght'")
    assert exit.value.code == 2
    assert capsys.readouterr() == ("", "error: unknown reward 'lenght'\n")


def test_a_message_is_shown_as_the_command_asks_for(capsys):
    with pytest.raises(SystemExit), exit_on_config_error(shown=lambda text: text.replace("SECRET", "***")):
        raise ConfigError("the key SECRET is refused")
    assert capsys.readouterr().err == "error: the key *** is refused\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a disk"), KeyboardInterrupt()])
def test_every_other_error_passes(error):
    with pytest.raises(type(error)), exit_on_config_error():
        raise error


def test_nothing_happens_without_an_error(capsys):
    with exit_on_config_error():
        pass
    assert capsys.readouterr() == ("", "")


def test_the_nearest_name_is_suggested_first():
    assert choose_from("lenght", ["format", "length"]) == "did you mean 'length'? (choose from: format, length)"


def test_a_name_like_no_other_gets_the_allowed_ones_in_order():
    assert choose_from("xyz", ["length", "accuracy"]) == "(choose from: accuracy, length)"


def test_a_name_that_is_no_text_gets_the_allowed_ones():
    assert choose_from(3, ["length"]) == "(choose from: length)"


def test_of_many_names_a_few_near_ones_stand_for_all():
    names = [f"dataset_{number}" for number in range(100)]
    near = choose_from("dataset_42x", names)
    assert near.startswith("did you mean 'dataset_42' or ") and "(100 names are known, such as dataset_42, " in near
    assert choose_from("xyz", names, most=2) == "(100 names are known, such as dataset_0, dataset_1)"
