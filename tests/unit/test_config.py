"""config.py: what a settings file and annotations may say, and what the message names when they say it wrong."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runvm import config
from runvm.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file's path; nothing is there yet, and no variable points elsewhere."""
    monkeypatch.delenv(config.FILE_VARIABLE, raising=False)
    return tmp_path / "config.toml"


def load(file: Path, text: str) -> config.Config:
    file.write_text(text)
    return config.load(file=str(file))


def test_without_a_file_the_defaults_hold(file: Path) -> None:
    assert config.load(file=str(file)) == config.Config()


def test_every_setting_is_described() -> None:
    assert tuple(config.SETTINGS) == config.Config._fields


def test_every_default_is_a_right_value(file: Path) -> None:
    """A file that says the defaults aloud is accepted, and changes nothing."""
    lines = [f"{key} = {config.toml_value(value)}" for key, value in config.Config()._asdict().items()]
    assert load(file, "\n".join(lines)) == config.Config()


def test_a_file_overrides_defaults(file: Path) -> None:
    loaded = load(file, 'accelerator = "tcg"\nvcpus = 3\ntemplate = false\nstate_dir = "/run/x"\n')
    assert loaded == config.Config(accelerator="tcg", vcpus=3, template=False, state_dir="/run/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vcpu = 1", "unknown key vcpu: did you mean vcpus? allowed: hypervisor, accelerator"),
        ("[qemus]\nx = 1", "unknown key qemus: did you mean qemu?"),
        ("[qemu]\npath = '/x'", "qemu = a table is not allowed: it takes an absolute path or an empty string"),
        ("vcpus = -1", "vcpus = -1 is not allowed: it takes a number from 0 to 255"),
        ("vcpus = 256", "vcpus = 256 is not allowed"),
        ("vcpus = true", "vcpus = true is not allowed"),
        ("vcpus = '2'", 'vcpus = "2" is not allowed'),
        ("vcpus = 1.5", "vcpus = 1.5 is not allowed"),
        ("memory_mib = 127", "memory_mib = 127 is not allowed: it takes 0 or a number from 128 to"),
        ("default_memory_mib = 0", "default_memory_mib = 0 is not allowed: it takes a number from 128 to"),
        ("template = 1", "template = 1 is not allowed: it takes true or false"),
        ("accelerator = 'hvf'", 'accelerator = "hvf" is not allowed: it takes one of auto, kvm, tcg'),
        ("qemu = 'bin/qemu'", "it takes an absolute path or an empty string"),
        ("image = 'images/one'", "it takes a name, an absolute path or an empty string"),
        ("state_dir = ''", "it takes an absolute path"),
        ("hypervisor = ''", "hypervisor ="),
        ('kernel_args = "a\\nb"', "it takes a string without control characters"),
        ("kernel_args = [1]", "kernel_args = [1] is not allowed"),
        ("a =", "is not valid TOML: Invalid value"),
        ("vcpus = 1\nvcpus = 2\n", "is not valid TOML: Cannot overwrite a value (at line 2"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_file_key_and_what_is_allowed(file: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(file, text)
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)


def test_a_file_that_is_not_utf8_is_named_with_its_line(file: Path) -> None:
    file.write_bytes(b"vcpus = 1\n# \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 at line 2"):
        config.load(file=str(file))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(file=str(tmp_path))


def test_the_variable_names_another_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.toml"
    other.write_text("vcpus = 7")
    monkeypatch.setenv(config.FILE_VARIABLE, str(other))
    assert config.load(file=str(file)).vcpus == 7


def test_a_file_that_the_variable_names_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.FILE_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none \(named by \$RUNVM_CONFIG\) does not exist"):
        config.load()


def test_the_variable_is_an_absolute_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines call runvm from a container's bundle, whose author would choose the settings."""
    monkeypatch.chdir(file.parent)
    file.write_text("vcpus = 2\n")
    monkeypatch.setenv(config.FILE_VARIABLE, file.name)
    with pytest.raises(ConfigError, match="no absolute path"):
        config.load(file="/nowhere")


def test_an_empty_variable_counts_as_unset(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.FILE_VARIABLE, "")
    assert config.load(file=str(file)) == config.Config()


def test_annotations_override_the_file(file: Path) -> None:
    file.write_text("vcpus = 1\nmemory_mib = 256")
    annotations = {"io.runvm.vcpus": "4", "io.runvm.template": "false", "org.example.vcpus": "9"}
    loaded = config.load(file=str(file), annotations=annotations)
    assert (loaded.vcpus, loaded.memory_mib, loaded.template) == (4, 256, False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vcpus", "-3", 'vcpus = "-3" is not allowed: it takes a number from 0 to 255'),
        ("vcpus", "999", "vcpus = 999 is not allowed"),
        ("vcpus", "²", "is not allowed"),
        ("vcpus", "", "is not allowed"),
        ("template", "yes", 'template = "yes" is not allowed: it takes true or false'),
        ("vcpu", "1", "unknown key vcpu: did you mean vcpus? allowed: vcpus, memory_mib, template"),
        ("qemu", "/tmp/evil", "a container may not choose this: set qemu in /etc/runvm/config.toml"),
        ("host_network", "vm", "a container may not choose this"),
    ],
)
def test_a_wrong_annotation_is_an_error_that_names_it(file: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.load(file=str(file), annotations={f"io.runvm.{name}": text})
    assert str(raised.value).startswith(f"annotation io.runvm.{name}: ")
    assert message in str(raised.value)


@given(st.dictionaries(st.sampled_from(config.CONTAINER_KEYS).map("io.runvm.{}".format), st.text(max_size=30)))
def test_no_annotation_text_gets_past_the_bounds(annotations: dict[str, str]) -> None:
    """Whatever text a container sends, the result is a ConfigError or a Config within its bounds."""
    try:
        loaded = config.load(file="/nonexistent", annotations=annotations)
    except ConfigError:
        return
    assert 0 <= loaded.vcpus <= 255
    assert loaded.memory_mib == 0 or loaded.memory_mib >= 128
    assert isinstance(loaded.template, bool)


def test_explain_says_where_each_value_came_from(file: Path) -> None:
    file.write_text("memory_mib = 256")
    told = {item.key: item for item in config.explain(file=str(file), annotations={"io.runvm.vcpus": "4"})}
    assert tuple(told) == config.Config._fields
    assert (told["memory_mib"].value, told["memory_mib"].origin) == (256, str(file))
    assert (told["vcpus"].value, told["vcpus"].origin) == (4, "annotation io.runvm.vcpus")
    assert (told["qemu"].value, told["qemu"].origin) == ("", "default")


def test_the_example_in_packaging_is_the_one_that_the_code_renders() -> None:
    """On failure: python3 -c 'from runvm import config; print(config.render_example(), end="")' > packaging/…"""
    assert (REPOSITORY / "packaging/config.toml.example").read_text() == config.render_example()


def test_the_example_with_its_comment_signs_removed_means_the_defaults(file: Path) -> None:
    lines = (line.removeprefix("#") for line in config.render_example().splitlines() if not line.startswith("# "))
    assert load(file, "\n".join(lines)) == config.Config()


@pytest.mark.parametrize(
    "file",
    ["/nonexistent", str(REPOSITORY / "packaging/config.toml.example"), "plain"],
    ids=["none", "example", "plain"],
)
def test_tomllib_is_not_loaded_for_no_file_or_plain_lines(file: str, tmp_path: Path) -> None:
    """Every command loads the settings: it shall pay for tomllib only where the file needs it."""
    if file == "plain":
        file = str(tmp_path / file)
        Path(file).write_text('# mine\nstate_dir = "/run/a b"\n\n  vcpus=3 \ntemplate = false\n')
    code = (
        f"import sys; from runvm import config; config.load(file={file!r});"
        "print(*({'tomllib', 'json', 'difflib', 'dataclasses'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


_PIECES = st.sampled_from([*"#=\"'\\ \n\t\r.[]{}_-+09", "vcpus", "qemu", "true", "0x1", '"/a"', "é", "\x00", "\u2028"])


@given(st.lists(_PIECES, max_size=14).map("".join))
@example('qemu = "a" # b"')
@example("vcpus = 1\nvcpus = 2")
@example("vcpus = 09")
@example('qemu = "a\u2028b"')
def test_plain_lines_mean_what_tomllib_says(text: str) -> None:
    plain = config._plain(text)
    if plain is not None:
        assert plain == tomllib.loads(text)


def test_a_container_chooses_a_hypervisor_where_the_host_allows_it(file: Path) -> None:
    chosen = {"io.runvm.hypervisor": "uml"}
    file.write_text('container_hypervisors = "qemu, uml"')
    assert config.load(file=str(file), annotations=chosen).hypervisor == "uml"
    for text in ('container_hypervisors = "qemu"', ""):
        file.write_text(text)
        with pytest.raises(ConfigError, match="a container may not choose the hypervisor uml"):
            config.load(file=str(file), annotations=chosen)
