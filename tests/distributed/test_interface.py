"""Gloo meets the other hosts where they are."""

import socket

import pytest

from megatron_gptx.distributed import interface
from megatron_gptx.distributed.interface import choose_interface, interface_to


def test_an_interface_is_found_by_the_address_that_leads_to_a_host():
    assert interface._interface_of("127.0.0.1") == "lo"
    assert interface._interface_of("192.0.2.1") is None


def test_a_name_that_means_this_machine_alone_leads_nowhere():
    """As on Debian, where a host's own name is 127.0.1.1."""
    assert interface_to(["localhost", "127.0.1.1", "no-such-host.invalid"]) is None


@pytest.fixture
def _route():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no route to other hosts")


@pytest.mark.usefixtures("_route")
def test_a_host_beyond_this_one_has_an_interface():
    found = interface_to(["127.0.1.1", "192.0.2.1"])
    assert found in [name for _, name in socket.if_nameindex()]
    assert found != "lo"


@pytest.mark.parametrize("variables", [{}, {"GPTX_HOSTS": "127.0.0.1"}])
def test_gloo_is_told_nothing_where_all_ranks_are_here(variables):
    before = dict(variables)
    choose_interface(variables)
    assert variables == before


def test_what_the_user_told_gloo_stays():
    variables = {"GPTX_HOSTS": "192.0.2.1", "GLOO_SOCKET_IFNAME": "ib0"}
    choose_interface(variables)
    assert variables["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.usefixtures("_route")
def test_gloo_is_told_which_interface_leads_to_the_other_hosts():
    variables = {"GPTX_HOSTS": "127.0.1.1:192.0.2.1"}
    choose_interface(variables)
    assert variables["GLOO_SOCKET_IFNAME"] == interface_to(["192.0.2.1"])
