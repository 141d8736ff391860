"""Every command: the flags that runc and crun have are taken, and what the verbs are asked for is right."""

import pytest

from runvm.__main__ import resolve
from runvm.cli import common, image, ps, spec, state
from runvm.cli import create as create_command
from runvm.cli import list as list_command
from runvm.cli.commands import COMMANDS, command_module
from runvm.cli.grammar import Args, Command, parse
from runvm.container.options import CreateOptions
from runvm.container.state import ContainerRecord
from runvm.errors import UsageError

CRIU = (
    "image-path= work-path= tcp-established ext-unix-sk shell-job file-locks manage-cgroups-mode= empty-ns= auto-dedup"
)
# Read off `runc COMMAND --help` and its source (hidden ones), and `crun COMMAND --help`; = marks those with a value
RUNC_1_1_5 = {
    "": "debug log= log-format=json root= criu= systemd-cgroup rootless=auto help h version v",
    "create": "bundle= b= console-socket= pid-file= no-pivot no-new-keyring preserve-fds=1",
    "run": "bundle= b= console-socket= detach d keep pid-file= no-subreaper no-pivot no-new-keyring preserve-fds=1",
    "start": "",
    "state": "",
    "list": "format=json f=json quiet q",
    "kill": "all a",
    "delete": "force f",
    "exec": "console-socket= cwd= env= e= tty t user= u= additional-gids=1 g=1 process= p= detach d pid-file= "
    "process-label= apparmor= no-new-privs cap= c= preserve-fds=1 cgroup= ignore-paused",
    "ps": "format=json f=json",
    "pause": "",
    "resume": "",
    "events": "interval= stats",
    "update": "resources= r= blkio-weight=1 cpu-period= cpu-quota= cpu-share= cpu-rt-period= cpu-rt-runtime= "
    "cpuset-cpus= cpuset-mems= memory= memory-reservation= memory-swap= pids-limit=1 l3-cache-schema= mem-bw-schema= "
    "kernel-memory= kernel-memory-tcp=",
    "spec": "bundle= b= rootless",
    "features": "",
    "checkpoint": f"{CRIU} parent-path= leave-running lazy-pages status-fd= page-server= pre-dump",
    "restore": f"{CRIU} lazy-pages console-socket= bundle= b= detach d pid-file= no-subreaper no-pivot lsm-profile= "
    "lsm-mount-context=",
}
CRUN = {
    "": "cgroup-manager=systemd debug log= log-format=text root= rootless=true systemd-cgroup ? help usage v V version",
    "create": "b= bundle= console-socket= f= config= no-new-keyring no-pivot no-subreaper pid-file= preserve-fds=1",
    "run": "b= bundle= console-socket= d detach f= config= no-new-keyring no-pivot no-subreaper pid-file= "
    "preserve-fds=1",
    "start": "? help usage",
    "state": "",
    "list": "f=table format=table q quiet",
    "kill": "a all r regex",
    "delete": "f force r regex",
    "exec": "apparmor= cgroup= console-socket= cwd= c= cap= d detach e= env= no-new-privs pid-file= preserve-fds=1 "
    "process-label= p= process= t tty u= user=",
    "ps": "f=table format=table",
    "pause": "",
    "resume": "",
    "update": "blkio-weight=1 cpu-period= cpu-quota= cpu-rt-period= cpu-rt-runtime= cpu-share= cpuset-cpus= "
    "cpuset-mems= kernel-memory= kernel-memory-tcp= memory= memory-reservation= memory-swap= pids-limit=1 r= "
    "resources=",
    "spec": "b= bundle= f= file= rootless",
    "checkpoint": "image-path= work-path= leave-running tcp-established ext-unix-sk shell-job pre-dump parent-path= "
    "manage-cgroups-mode= network-lock=",
    "restore": "b= bundle= image-path= work-path= tcp-established ext-unix shell-job detach pid-file= "
    "manage-cgroups-mode= network-lock=",
}


def table(name: str) -> Command:
    command: Command = command_module(name).COMMAND
    return command


def args_of(name: str, *argv: str) -> Args:
    return parse(table(name), list(argv))


@pytest.mark.parametrize(
    ("command", "flag"),
    sorted(
        {
            (command, flag)
            for runtime in (RUNC_1_1_5, CRUN)
            for command, flags in runtime.items()
            for flag in flags.split()
        }
    ),
)
def test_every_flag_of_runc_and_crun_is_taken(command: str, flag: str) -> None:
    name, equals, value = flag.partition("=")
    word = f"--{name}" if len(name) > 1 else f"-{name}"
    words = [word, value or "x"] if equals else [word]
    if command:
        args_of(command, *words, *["c1"] * (table(command).min_args))
    else:
        assert resolve([*words, "features"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_table_and_a_run(name: str) -> None:
    module = command_module(name)
    assert module.COMMAND.name == name
    assert callable(module.run)
    assert module.COMMAND.description


# --- create, run


def test_create_as_containerd_calls_it() -> None:
    args = args_of("create", "--bundle", "/run/b", "--pid-file", "/run/b/init.pid", "--console-socket", "/tmp/s", "c1")
    assert common.create_options(args) == CreateOptions("/run/b", "", "/tmp/s", "/run/b/init.pid", 0)


def test_create_with_everything_else() -> None:
    args = args_of("create", "-b", "/b/", "--preserve-fds=3", "--no-pivot", "--no-new-keyring", "-f", "/c.json", "c1")
    assert common.create_options(args) == CreateOptions("/b", "/c.json", "", "", 3)


def test_relative_paths_are_the_callers(tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    args = args_of("create", "--pid-file", "pid", "--config", "../other.json", "c1")
    options = common.create_options(args)
    assert options.bundle == str(tmp_path)
    assert options.pid_file == f"{tmp_path}/pid"
    assert options.config_file.endswith("/other.json")
    assert ".." not in options.config_file


@pytest.mark.parametrize("count", ["-1", "x", "1.0"])
def test_preserve_fds_is_a_count(count: str) -> None:
    with pytest.raises(UsageError, match="preserve-fds"):
        common.create_options(args_of("create", "--preserve-fds", count, "c1"))


def test_run_has_what_create_has_and_more() -> None:
    own = {flag.name for flag in table("run").flags} - {flag.name for flag in create_command.COMMAND.flags}
    assert own == {"detach", "keep"}


# --- ids


@pytest.mark.parametrize("cid", ["a", "A_b-c.d+e,f", "0" * 64, "x" * 255, "_", "...", "c1"])
def test_ids(cid: str) -> None:
    assert common.checked_id(cid) == cid


@pytest.mark.parametrize("cid", [".", "..", "a/b", "../x", "a b", "a:b", "é", "a\n", "a\0", "x" * 256, "/"])
def test_what_is_no_id(cid: str) -> None:
    with pytest.raises(UsageError, match="invalid container ID format"):
        common.checked_id(cid)


def test_the_empty_id() -> None:
    with pytest.raises(UsageError, match="container id cannot be empty"):
        common.checked_id("")


# --- state, list


def record(cid: str, **changed: object) -> ContainerRecord:
    values: dict[str, object] = dict.fromkeys(ContainerRecord._fields, "")
    values |= {"id": cid, "pid": 6872, "status": "running", "bundle": "/tmp/cli-bundle"}
    values |= {"rootfs": "/tmp/cli-bundle/rootfs", "oci_version": "1.0.2-dev", "annotations": {}}
    values |= {"created": "2026-11-24T00:08:07.842147368Z", **changed}
    return ContainerRecord(**values)  # type: ignore[arg-type]


def test_state_is_runcs() -> None:
    described = state.describe(record("c1", annotations={"b": "2", "a.b": "c"}))
    assert list(described) == [
        "ociVersion",
        "id",
        "pid",
        "status",
        "bundle",
        "rootfs",
        "created",
        "annotations",
        "owner",
    ]
    assert described["annotations"] == {"a.b": "c", "b": "2"}
    assert list(described["annotations"]) == ["a.b", "b"]


def test_state_without_annotations_has_no_key_of_that_name() -> None:
    assert "annotations" not in state.describe(record("c1"))


def test_the_table_of_list_is_runcs() -> None:
    """Byte by byte what runc 1.1.5 printed."""
    assert list_command.rendered([]) == "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    assert list_command.rendered(
        [(record("c1"), "root"), (record("c22222222222222222222", status="created"), "root")]
    ) == (
        "ID                      PID         STATUS      BUNDLE            CREATED                          OWNER\n"
        "c1                      6872        running     /tmp/cli-bundle   2026-11-24T00:08:07.842147368Z   root\n"
        "c22222222222222222222   6872        created     /tmp/cli-bundle   2026-11-24T00:08:07.842147368Z   root\n"
    )


# --- ps

PS = """\
UID        PID  PPID  C STIME TTY          TIME CMD
root       687     1  0 00:08 ?        00:00:00 sleep 6872
root      6872     1  0 00:08 ?        00:00:00 sleep 1000
root     68720     1  0 00:08 ?        00:00:00 sh

"""


def test_ps_shows_the_lines_of_the_containers_pids() -> None:
    lines = PS.splitlines()
    assert ps.only([6872], PS) == f"{lines[0]}\n{lines[2]}\n"
    assert ps.only([], PS) == f"{lines[0]}\n"


def test_ps_without_pids_in_its_output() -> None:
    with pytest.raises(UsageError, match="couldn't find PID field in ps output"):
        ps.only([1], "COMMAND\nsleep 1000\n")


def test_ps_options_are_handed_on() -> None:
    args = args_of("ps", "-f", "table", "c1", "-o", "pid,args", "--format", "x")
    assert args.words == ["c1", "-o", "pid,args", "--format", "x"]


# --- --regex


def test_a_regular_expression_is_found_anywhere() -> None:
    assert common.matching("b.", ["abc", "b", "xb1"]) == ["abc", "xb1"]


def test_a_wrong_regular_expression() -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        common.matching("zz[", ["a"])


def test_one_that_fails_does_not_stop_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    done = []

    def act(cid: str) -> None:
        if cid == "b":
            raise UsageError("no such thing")
        done.append(cid)

    assert common.for_each(["a", "b", "c"], act) == 0
    assert done == ["a", "c"]
    assert "b: no such thing" in capfd.readouterr().err


# --- spec, image


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--bundle", "/b"], ("/b/config.json", False)),
        (["--file", "/x.json"], ("/x.json", True)),
        (["--bundle", "/b", "--file", "x.json"], ("/b/x.json", True)),
    ],
)
def test_spec_says_where_it_writes(argv: list[str], wanted: tuple[str, bool]) -> None:
    assert spec.target(args_of("spec", *argv)) == wanted


def test_prune_keeps_one_unless_told() -> None:
    assert image.keep_of(args_of("image", "prune")) == 1
    assert image.keep_of(args_of("image", "prune", "--keep", "3")) == 3
    with pytest.raises(UsageError, match="keep"):
        image.keep_of(args_of("image", "prune", "--keep=-1"))


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**3, "5.0 GiB")])
def test_sizes(count: int, text: str) -> None:
    assert common.size(count) == text
