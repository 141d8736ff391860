"""grammar.py: what argv means, for the ways of writing flags that runc's and crun's parsers take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runvm.cli.grammar import Args, Command, Flag, parse, parse_number
from runvm.errors import UsageError

BOX = Command(
    "box",
    words="<id> [signal]",
    min_args=1,
    max_args=2,
    flags=(
        Flag("bundle", "", "b", metavar="DIR"),
        Flag("format", "", "f", metavar="FORMAT", default="table", choices=("table", "json")),
        Flag("env", "", "e", metavar="NAME=VALUE", many=True),
        Flag("count", "", metavar="N", default="7", number=True),
        Flag("quiet", "", "q"),
        Flag("detach", "", "d"),
    ),
)
HANDS_ON = Command(
    "exec", words="<id> <command>", min_args=1, max_args=-1, hands_on=True, flags=(Flag("tty", "", "t"),)
)
GROUP = Command("image", children=(Command("build"), Command("prune", flags=(Flag("keep", "", metavar="N"),))))


def box(*argv: str) -> Args:
    return parse(BOX, list(argv))


@pytest.mark.parametrize(
    "argv",
    [
        ["--bundle", "/b", "c1"],
        ["--bundle=/b", "c1"],
        ["-bundle", "/b", "c1"],
        ["-bundle=/b", "c1"],
        ["--b", "/b", "c1"],
        ["-b", "/b", "c1"],
        ["-b=/b", "c1"],
        ["-b/b", "c1"],
        ["-qb", "/b", "c1"],
        ["-qb/b", "c1"],
        ["c1", "--bundle", "/b"],
        ["c1", "-b", "/b"],
        ["--bundle", "/a", "c1", "--bundle", "/b"],
    ],
)
def test_ways_to_write_a_value(argv: list[str]) -> None:
    args = box(*argv)
    assert (args.text("bundle"), args.words) == ("/b", ["c1"])


@pytest.mark.parametrize(
    "argv", [["-q"], ["--quiet"], ["-quiet"], ["--quiet=true"], ["-q=1"], ["-dq"], ["-qf", "json"]]
)
def test_ways_to_turn_a_switch_on(argv: list[str]) -> None:
    assert box(*argv, "c1").on("quiet")


@pytest.mark.parametrize("argv", [[], ["--quiet=false"], ["-q=F"], ["--quiet", "--quiet=0"]])
def test_ways_to_leave_a_switch_off(argv: list[str]) -> None:
    assert not box(*argv, "c1").on("quiet")


def test_a_switch_takes_no_word_as_its_value() -> None:
    assert box("--quiet", "c1").words == ["c1"]


def test_a_value_may_begin_with_a_dash() -> None:
    assert box("--count", "-1", "c1").number("count") == -1


def test_a_value_may_be_empty_and_may_contain_an_equals_sign() -> None:
    assert box("--bundle=", "c1").text("bundle") == ""
    assert box("-e", "A=b=c", "-eB=1", "--env=C=", "c1").texts("env") == ["A=b=c", "B=1", "C="]


def test_defaults() -> None:
    args = box("c1")
    assert (args.text("format"), args.number("count"), args.texts("env"), args.given("env")) == ("table", 7, [], False)


def test_a_lone_dash_is_a_word_and_two_dashes_end_the_flags() -> None:
    assert box("-").words == ["-"]
    assert box("--", "--quiet", "-9").words == ["--quiet", "-9"]


def test_what_is_handed_on_keeps_its_dashes() -> None:
    """As with runc and crun: after the id nothing is a flag of exec's."""
    args = parse(HANDS_ON, ["-t", "c1", "ls", "-t", "--help", "--", "-h"])
    assert args.on("tty")
    assert args.words == ["c1", "ls", "-t", "--help", "--", "-h"]
    assert not parse(HANDS_ON, ["c1", "-t"]).on("tty")


def test_two_dashes_right_after_the_id_are_dropped() -> None:
    """runc's manual page writes `exec ID -- COMMAND`, though runc itself looks for a program of that name."""
    assert parse(HANDS_ON, ["c1", "--", "ls"]).words == ["c1", "ls"]


@pytest.mark.parametrize(
    "argv", [["-h"], ["--help"], ["-?"], ["--usage"], ["a", "b", "c", "--help"], ["--help", "--help"]]
)
def test_help_wins_over_the_count_of_words(argv: list[str]) -> None:
    assert box(*argv).on("help")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], '"box" requires a minimum of 1 argument(s)'),
        (["a", "b", "c"], '"box" requires a maximum of 2 argument(s)'),
        (["--bundle"], "flag needs an argument: --bundle"),
        (["-qb"], "flag needs an argument: -b"),
        (["--bundel", "x"], "flag provided but not defined: --bundel: did you mean --bundle?"),
        (["c1", "-9"], "flag provided but not defined: -9"),
        (["-qx", "c1"], "flag provided but not defined: -qx"),
        (["---quiet", "c1"], "flag provided but not defined: ---quiet"),
        (["--root", "/r", "c1"], "a global flag stands before the command"),
        (["--format", "yaml", "c1"], 'invalid value "yaml" for flag --format: it is one of table, json'),
        (["--count", "x", "c1"], 'invalid value "x" for flag --count: it takes a whole number'),
        (["--quiet=maybe", "c1"], 'invalid value "maybe" for flag --quiet: it is true or false'),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        box(*argv)
    assert message in str(caught.value)
    assert str(caught.value).endswith("see 'runvm help box'")
    assert caught.value.exit_code == 1


def test_exactly_is_said_where_the_bounds_are_one() -> None:
    with pytest.raises(UsageError, match=r'"state" requires exactly 1 argument\(s\)'):
        parse(Command("state", min_args=1, max_args=1), ["a", "b"])


def test_a_subcommand_is_read_by_its_own_table() -> None:
    args = parse(GROUP, ["prune", "--keep", "2"])
    assert (args.command.name, args.text("keep")) == ("prune", "2")
    assert parse(GROUP, ["build", "--help"]).on("help")
    assert parse(GROUP, ["--help"]).on("help")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], '"image" requires a command: one of build, prune'),
        (["bild"], '"image" has no command "bild": it is one of build, prune'),
        (["prune", "x"], "\"image prune\" requires exactly 0 argument(s): see 'runvm help image prune'"),
    ],
)
def test_mistakes_in_subcommands(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(GROUP, argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("010", 10), ("-3", -3), ("+4", 4), ("0x10", 16), ("-0x10", -16)]
)
def test_numbers(text: str, number: int) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", " 1", "1 ", "1.5", "1e3", "x", "٣", "0x", "9" * 65])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError):
        parse_number(text)


@given(st.lists(st.text(max_size=12) | st.sampled_from(["--", "-", "-q", "--bundle", "-e", "--count", "c1", "--help"])))
def test_any_argv_is_read_or_refused(argv: list[str]) -> None:
    for table in (BOX, HANDS_ON, GROUP):
        try:
            args = parse(table, argv)
        except UsageError:
            continue
        for flag in args.command.flags:
            args.text(flag.name)
            if flag.number:
                args.number(flag.name)
