"""All parts of CANN are of one release, and their environment can be sourced."""

from __future__ import annotations

from tests.roles.helpers import changed


def test_the_environment_of_toolkit_and_nnal(host) -> None:
    base = "/usr/local/Ascend"
    scripts = f". {base}/ascend-toolkit/set_env.sh && . {base}/nnal/atb/set_env.sh"
    home, atb = host.check_output("bash -c %s", f"{scripts} && echo $ASCEND_TOOLKIT_HOME $ATB_HOME_PATH").split()
    assert host.file(f"{home}/{host.check_output('uname -m')}-linux/lib64/libhccl.so").exists
    assert host.file(f"{atb}/lib/libatb.so").exists
    assert "version_dir=8.3.RC2" in host.file(f"{base}/ascend-toolkit/8.3.RC2/opp_kernel/version.info").content_string


def test_no_package_is_left_behind(host) -> None:
    assert not host.file("/var/lib/ascent/packages").exists


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
