"""What a service manager says in the environment, and to whom."""

from __future__ import annotations

import pytest

from wstunnel.config.service import ServiceEnvironment, service_environment
from wstunnel.errors import ConfigError

ALL = {
    "NOTIFY_SOCKET": "/run/systemd/notify",
    "WATCHDOG_USEC": "1500000",
    "WATCHDOG_PID": "71",
    "LISTEN_PID": "71",
    "LISTEN_FDS": "2",
    "LISTEN_FDNAMES": "http:unix",
    "LISTEN_PIDFDID": "12345",
}


def test_what_is_said_to_us_is_read():
    assert service_environment(dict(ALL), 71) == ServiceEnvironment(
        notify_socket="/run/systemd/notify", watchdog_s=1.5, listen_fds=2, listen_names=("http", "unix")
    )


def test_children_inherit_none_of_it():
    environ = {**ALL, "PATH": "/bin"}
    service_environment(environ, 71)
    assert environ == {"PATH": "/bin"}


def test_what_is_said_to_another_process_is_not_for_us_and_goes_all_the_same():
    """A shell between the manager and us has another pid; its children must not take the sockets for theirs."""
    environ = dict(ALL)
    assert service_environment(environ, 72) == ServiceEnvironment(notify_socket="/run/systemd/notify")
    assert environ == {}


def test_without_a_manager_there_is_nothing():
    assert service_environment({}, 71) == ServiceEnvironment()


def test_sockets_without_a_pid_are_nobodys():
    assert service_environment({"LISTEN_FDS": "1"}, 71).listen_fds == 0


def test_a_watchdog_without_a_pid_is_for_the_process_that_it_is_said_to():
    assert service_environment({"WATCHDOG_USEC": "2000000"}, 71).watchdog_s == 2.0


def test_a_watchdog_of_no_time_is_none():
    assert service_environment({"WATCHDOG_USEC": "0"}, 71).watchdog_s is None


def test_what_is_no_number_is_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        service_environment({"LISTEN_PID": "71", "LISTEN_FDS": "two", "WATCHDOG_USEC": "-1\x1b"}, 71)
    watchdog, fds = caught.value.problems
    assert watchdog.startswith('WATCHDOG_USEC: "-1\\x1b" in the environment is no number')
    assert fds.startswith('LISTEN_FDS: "two"')
