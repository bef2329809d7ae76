from __future__ import annotations

from bench import first_packet


def test_many_services_are_compared_with_few_round_by_round() -> None:
    few = [1.0, 2.0, 4.0] * 4
    measured = {
        "10 Services": few,
        "10000 Services": [1.05 * each for each in few],
        "30000 Services": [1.2 * each for each in few],
    }
    rows = first_packet.against_few("latency", measured).rows
    assert rows[0] == ("10000 Services", "1.050", "1.050 to 1.050", "<= 1.1", "kept")
    assert rows[1][-1] == "BROKEN"


def test_a_time_for_each_connection_is_told_as_a_rate() -> None:
    table = first_packet.connections_per_second({"10 Services": [0.0001, 0.001, 0.0002]})
    assert table.rows == (("10 Services", "5,000"),)
