"""The stream protocol keeps its promises against every actor that can be thought of."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from protocol_machine import machine_on

from nbqueue.stream.server import PrivateServer

PROFILE = settings(deadline=None, print_blob=True, stateful_step_count=40, suppress_health_check=list(HealthCheck))


def test_every_call_ends_once_whatever_happens(own_server: PrivateServer) -> None:
    run_state_machine_as_test(machine_on(own_server), settings=settings(PROFILE, max_examples=50))


@pytest.mark.soak
def test_every_call_ends_once_in_long_histories(own_server: PrivateServer) -> None:
    profile = settings(PROFILE, max_examples=3000, stateful_step_count=60)
    run_state_machine_as_test(machine_on(own_server), settings=profile)
