"""Collective test programs: command lines, outputs, and what a run is taken for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import command, hccl_test, mpi_job, nccl_tests
from ascent.errors import ParseError

TABLE = """the minbytes is 8192, maxbytes is 1048576, iters is 20, warmup_iters is 5
data_size(Bytes): | aveg_time(us): | alg_bandwidth(GB/s): | check_result:
8192              | 41.20          | 0.19884              | success
1048576           | 92.00          | 11.39757             | success
"""


def tagged(text, rank=0, stream="stdout"):
    return "".join(f"[1,{rank}]<{stream}>:{line}\n" for line in text.splitlines())


@pytest.mark.parametrize("text", [TABLE, tagged(TABLE), "".join(f"[0] {line}\n" for line in TABLE.splitlines())])
def test_a_table_is_read_with_and_without_ranks(text):
    told = hccl_test.parse(text)
    assert told["rows"][-1] == {"bytes": 1048576, "us": 92.0, "gbs": 11.39757, "check": "success"}
    assert (told["wrong"], told["errors"], told["problems"]) == ([], [], [])


def test_the_other_spelling_and_unchecked_results():
    text = TABLE.replace("aveg_time", "avg_time").replace("success", "NULL")
    assert [row["check"] for row in hccl_test.parse(text)["rows"]] == ["NULL", "NULL"]


@pytest.mark.parametrize(
    "row",
    ["8192 | fast | 0.1 | success", "8192 | 41.2 | 0.1", "8192 | 41.2 | 0.1 | maybe", "64 | 1.0 | 0.1 | success"],
)
def test_a_row_that_does_not_fit_is_refused(row):
    with pytest.raises(ParseError):
        hccl_test.parse(TABLE + row + "\n")


@given(st.text(alphabet=st.sampled_from("0123456789 |.:succesfaild()BbytesNUL[],<>\n"), max_size=200))
def test_the_parser_is_total(text):
    try:
        hccl_test.parse(TABLE + text)
        nccl_tests.parse(text)
    except ParseError:
        pass


def test_the_rank_that_failed_is_told():
    text = tagged(
        "hccl interface return err ./common/src/x.cc:538, retcode: 19 \nThis is an error in init_hcclComm.\n", 5
    )
    assert hccl_test.parse(text)["errors"] == [{"rank": 5, "retcode": 19, "step": "init_hcclComm"}]
    wrong = tagged("local rank_id 3, check result failed, 8192 | 41.2 | 0.2 | failed\n", 3)
    assert hccl_test.parse(TABLE + wrong)["wrong"] == [3]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("bash: line 1: orted: command not found", "launcher"),
        ("x: error while loading shared libraries: libmpi.so.40: cannot open shared object file", "launcher"),
        ("ORTE was unable to reliably start one or more daemons.", "launcher"),
        ("Error: The number of device is 0.", "no-device"),
        ("gethostbyname failed, a3-02", "name"),
        ("root@192.0.2.9: Permission denied (publickey).", "login"),
        ("ssh: connect to host 192.0.2.9 port 22: Connection refused", "login"),
    ],
)
def test_what_keeps_a_test_from_starting_is_named(text, kind):
    assert [one["kind"] for one in hccl_test.parse(text)["problems"]] == [kind]
    told = mpi_job.outcome(1, text, 1048576, 60)
    assert (told["outcome"], told["problem"]) == ("failed", kind)


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (0, TABLE, "ok"),
        (1, TABLE, "failed"),
        (0, "\n".join(TABLE.splitlines()[:3]) + "\n", "failed"),
        (0, "", "failed"),
        (command.TIMED_OUT, "", "timeout"),
        (0, TABLE.replace("success", "failed"), "wrong"),
        (0, TABLE + "8192 | ? | ? | ?\n", "failed"),
        (1, "hccl interface return err x.cc:5, retcode: 9\n", "failed"),
        # What failed first is told, not that the others waited for it.
        (command.TIMED_OUT, "hccl interface return err x.cc:5, retcode: 7\n", "failed"),
    ],
)
def test_text_decides_what_a_run_is(code, text, outcome):
    told = mpi_job.outcome(code, text, 1048576, 60)
    assert told["outcome"] == outcome
    assert bool(told["text"]) == (outcome != "ok")


def test_open_mpi_gets_one_login_for_each_host_and_the_plans_network():
    argv = hccl_test.mpirun(
        "openmpi", "/t/all_reduce_test", ["192.0.2.1", "192.0.2.2"], 8,
        agent="/d/ssh", interfaces=["eth0"], environment={"HCCL_CONNECT_TIMEOUT": "120"},
    )  # fmt: skip
    line = " ".join(argv)
    assert argv[0] == "mpirun"
    assert "-np 16 --host 192.0.2.1:8,192.0.2.2:8" in line
    assert "plm_rsh_agent /d/ssh --mca plm_rsh_no_tree_spawn 1" in line
    assert "--mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0" in line
    assert "-x HCCL_CONNECT_TIMEOUT=120 /t/all_reduce_test -b 8192 -e 67108864 -f 8" in line
    assert line.endswith("-p 8")


def test_mpich_gets_the_same_in_its_own_words():
    argv = hccl_test.mpirun("mpich", "/t/p", ["192.0.2.1"], 4, agent="/d/ssh", environment={"A": "1"})
    assert " ".join(argv).startswith(
        "mpirun -launcher ssh -launcher-exec /d/ssh -prepend-rank -hosts 192.0.2.1 -ppn 4 -n 4 -genv A 1 /t/p -b"
    )
    with pytest.raises(ValueError, match="lam"):
        hccl_test.mpirun("lam", "/t/p", ["192.0.2.1"], 4, agent="/d/ssh")


class Jobs:
    """Stands in for MPI: answers by host, and keeps the command lines."""

    def __init__(self, answers=None):
        self.answers, self.lines = answers or {}, []

    def __call__(self, argv, limit, environment):
        self.lines.append(list(argv))
        return next((answer for host, answer in self.answers.items() if any(host in word for word in argv)), (0, TABLE))


HOSTS = {
    "a": {"address": "192.0.2.1", "devices": [0, 1]},
    "b": {"address": "192.0.2.2", "devices": [0, 1]},
    "c": {"address": "192.0.2.3", "devices": [4, 5]},
}


def launcher(jobs, **options):
    return mpi_job.Launcher(HOSTS, "openmpi", "/t", job=jobs, agent="/d/ssh", sizes=(8192, 1 << 20), **options)


def test_groups_run_at_once_and_keep_their_order():
    jobs = Jobs({"192.0.2.2": (command.TIMED_OUT, "")})
    runs = launcher(jobs, limit=7).measure("node", "all_reduce", [("a",), ("b",), ("c",)])
    assert [run["outcome"] for run in runs] == ["ok", "timeout", "ok"]
    assert runs[1]["text"] == "the collective test did not end within 7 s"
    # Devices other than the first are named to the program.
    assert [any("HCCL_TEST_USE_DEVS=4,5" in word for word in line) for line in jobs.lines].count(True) == 1


def test_a_rank_is_told_as_host_and_device():
    failed = tagged("hccl interface return err x.cc:538, retcode: 19 \n", 3)
    run = launcher(Jobs({"192.0.2.2": (1, failed)})).run("all_reduce", ("a", "b"))
    assert (run["retcode"], run["at"]) == (19, ["b", 1])


def test_a_burn_in_runs_the_largest_size_for_a_good_part_of_its_time():
    jobs = Jobs()
    started = launcher(jobs, limit=100, iterations=20)
    started.measure("cluster", "all_reduce", [("a", "b")])
    (told,) = started.measure("burn-in", "all_reduce", [("a", "b")])
    assert told["outcome"] == "ok"
    line = jobs.lines[-1]
    place = line.index("-b")
    assert line[place : place + 4] == ["-b", "524288", "-e", "524288"]
    largest = hccl_test.parse(TABLE)["rows"][-1]["us"]
    # A third of the time: a host that gets slow still ends in time, and is slow, not hung.
    assert int(line[line.index("-n") + 1]) == min(100000, int(30e6 / largest))


NCCL = """# nThread 1 nGpus 1 minBytes 8192 maxBytes 1048576
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
        8192          2048     float     sum      -1    35.10    0.23    0.41      0    34.02    0.24    0.42      0
     1048576        262144     float     sum      -1    88.10   11.90   20.80      0    91.30   11.49   20.10    N/A
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 10.1
"""


def test_nccl_tests_are_read_by_their_slower_half():
    told = nccl_tests.parse(tagged(NCCL))
    assert told["rows"][-1] == {"bytes": 1048576, "us": 91.3, "gbs": 11.49, "check": "success"}
    assert told["wrong"] == []
    assert nccl_tests.parse(NCCL.replace("0    34.02", "7    34.02"))["wrong"] == [None]
    assert mpi_job.outcome(0, NCCL, 1048576, 60, "nccl-tests")["outcome"] == "ok"


def test_other_shapes_of_nccl_tests():
    plain = "8192 2048 float 35.1 0.23 0.41 0e+00 34.0 0.24 0.42 0e+00\n"
    assert nccl_tests.parse(plain)["rows"][0]["us"] == 35.1
    with pytest.raises(ParseError):
        nccl_tests.parse("8192 2048 float sum -1 fast\n")
    # Collectives without a reduction: an operation that is none, or a blank in its place.
    none = "8192 2048 float none -1 35.1 0.23 0.41 0 34.0 0.24 0.42 N/A\n"
    blank = "8192 2048 float      -1 35.1 0.23 0.41 0 34.0 0.24 0.42 N/A\n"
    assert nccl_tests.parse(none)["rows"] == nccl_tests.parse(blank)["rows"]
    assert nccl_tests.parse(blank)["rows"] == [{"bytes": 8192, "us": 35.1, "gbs": 0.23, "check": "success"}]
    # Figures that are whole numbers are no root.
    whole = "1073741824 268435456 float sum -1 123456 8.7 15.2 0 123500 8.6 15.1 0\n"
    assert nccl_tests.parse(whole)["rows"][0]["us"] == 123500.0
    unchecked = "8192 2048 float sum -1 35.1 0.23 0.41 N/A 34.0 0.24 0.42 N/A\n"
    assert nccl_tests.parse(unchecked)["rows"][0]["check"] == "NULL"


def test_a_size_that_24_ranks_can_not_share_is_cut_and_counts():
    rows = [(8064, 30.1), (65472, 31.0), (1048512, 90.5)]
    text = "".join(f"{size} {size // 96} float none -1 {us} 0.2 0.2 0 {us} 0.2 0.2 0\n" for size, us in rows)
    assert mpi_job.outcome(0, text, 1048576, 60, "nccl-tests")["outcome"] == "ok"
    cut = "".join(text.splitlines(keepends=True)[:2])
    assert mpi_job.outcome(0, cut, 1048576, 60, "nccl-tests")["outcome"] == "failed"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gpu-01: Test NCCL failure all_reduce.cu:44 'unhandled system error'", "unhandled system error"),
        (
            "gpu-01: Test NCCL failure common.cu:958 'invalid usage (run with NCCL_DEBUG=WARN)",
            "invalid usage (run with",
        ),
        ("gpu-01: Test NCCL failure common.cu:1279 'internal error / '", "internal error"),
        ("gpu-01: Test NCCL failure common.cu:9 'remote process exited / Net: Call to recv failed'", "recv failed"),
        ("gpu-01: Test CUDA failure common.cu:1047 'no CUDA-capable device is detected'", "no CUDA-capable device"),
        ("gpu-01:77:77 [0] net_ib.cc:209 NCCL WARN NET/IB : No device found.", "NET/IB : No device found."),
    ],
)
def test_what_nccl_says_before_it_ends_is_kept(line, words):
    (problem,) = nccl_tests.parse(f"# nThread 1 nGpus 1\n{line}\n .. gpu-01 pid 77: Test failure common.cu:401\n")[
        "problems"
    ]
    assert problem["kind"] == "nccl"
    assert words in problem["text"]
    assert not problem["text"].endswith(("'", "/"))
    told = mpi_job.outcome(3, line, 1048576, 60, "nccl-tests")
    assert (told["outcome"], told["problem"]) == ("failed", "nccl")


def test_a_gpu_test_has_a_rank_for_each_gpu():
    argv = nccl_tests.mpirun("openmpi", "/n/all_reduce_perf", ["192.0.2.1"], 8, agent="/d/ssh")
    assert argv[argv.index("/n/all_reduce_perf") + 1 :] == [
        "-b", "8192", "-e", "67108864", "-f", "8", "-n", "20", "-w", "5", "-c", "1", "-g", "1",
    ]  # fmt: skip


def test_a_job_over_its_time_is_ended_and_keeps_its_words(tmp_path):
    begun = ["sh", "-c", "echo begun; trap 'echo asked; exit 3' TERM; while :; do sleep 0.05; done"]
    code, text = command.job(begun, 0.5, {"PATH": "/usr/bin:/bin"})
    assert code == command.TIMED_OUT
    assert (text.split()[0], text.split()[-1]) == ("begun", "asked")
    deaf = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"]
    assert command.job(deaf, 0.3, {"PATH": "/usr/bin:/bin"}, grace=0.3) == (command.TIMED_OUT, "deaf\n")
    assert command.job(["sh", "-c", "echo $A; exit 4"], 5, {"PATH": "/bin:/usr/bin", "A": "7"}) == (4, "7\n")
    assert command.job([str(tmp_path / "none")], 5, {})[0] == command.MISSING
