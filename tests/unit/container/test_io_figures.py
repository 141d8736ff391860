"""A guest's io.stat and *.pressure in runc's shape."""

from runvm.container import io_figures


def test_bytes_and_operations_by_device() -> None:
    text = "8:0 rbytes=4096 wbytes=0 rios=1 wios=2 dbytes=5 dios=6\n254:16\n253:0 rbytes=7\n"
    assert io_figures.blkio(text) == {
        "ioServiceBytesRecursive": [
            {"major": 8, "op": "Read", "value": 4096},
            {"major": 8, "op": "Write"},
            {"major": 253, "op": "Read", "value": 7},
        ],
        "ioServicedRecursive": [{"major": 8, "op": "Read", "value": 1}, {"major": 8, "op": "Write", "value": 2}],
    }


def test_what_no_kernel_says_is_left_out() -> None:
    """The guest is the enemy."""
    assert io_figures.blkio("") == {}
    assert io_figures.blkio("8:0 rbytes=-1 rios=² wios=" + "9" * 5000 + "\n8 rbytes=1\n\n8:x rios=1") == {}
    assert io_figures.pressure({"io.pressure": "some avg10=x avg60=0.00 avg300=0.00 total=1\n\nfull"}, "io") == {}


def test_pressure() -> None:
    some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\n"
    none = {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0}
    seen = {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 1234}
    assert io_figures.pressure({"cpu.pressure": some}, "cpu") == {"psi": {"some": seen, "full": none}}
    full = some.replace("some", "full")
    assert io_figures.pressure({"io.pressure": some + full}, "io") == {"psi": {"some": seen, "full": seen}}
    assert io_figures.pressure({"io.pressure": some}, "memory") == {}
