"""Rules of live pods that another program has deleted are restored; those of a deleted pod are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni_py import engine
from cni_py.agent.rules_watch import TABLES
from cni_py.attachment import record as attachments
from cni_py.jsontext import encode
from cni_py.packetfilter.monitor import NftWatch
from cni_py.spec.call import Call, parse
from cni_py.sweep import restore
from support.agents import Agent
from support.namespaces import Host, Sandbox, wait_for_end
from support.nft import list_elements
from support.pods import DUAL_ENV, FLANNEL, V4, V6, bridge_conf
from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
CONF = bridge_conf(V4, V6, isDefaultGateway=True, ipMasq=True, macspoofchk=True, masqueradeExcept=["10.0.0.0/8"])
OTHER = bridge_conf([{"subnet": "10.2.0.0/24"}], isDefaultGateway=True, ipMasq=True, name="other", bridge="other")
PTP = CONF | {"type": "ptp"}
FLUSH = "nft flush ruleset"


def port(number: int) -> dict[str, Any]:
    return {"hostPort": number, "containerPort": 80, "protocol": "tcp"}


def attach(host: Host, name: str, number: int, conf: dict[str, Any] = CONF, **portmap: Any) -> dict[str, Any]:
    """Attach a pod to a main plugin and to portmap. Returns: its result."""
    pod = host.netns(name)
    result: dict[str, Any] = host.ok(conf["type"], "ADD", conf, sandbox=pod, container_id=name)
    host.ok("portmap", "ADD", portmap_conf(conf, number, **portmap), sandbox=pod, container_id=name, prev=result)
    return result


def portmap_conf(conf: dict[str, Any], *numbers: int, **keys: Any) -> dict[str, Any]:
    about = {"cniVersion": "1.1.0", "name": conf["name"], "type": "portmap"}
    return about | {"runtimeConfig": {"portMappings": [port(number) for number in numbers]}} | keys


def detach(host: Host, name: str, conf: dict[str, Any] = CONF) -> None:
    host.ok("portmap", "DEL", portmap_conf(conf), sandbox=Sandbox(name), container_id=name)
    host.ok(conf["type"], "DEL", conf, sandbox=Sandbox(name), container_id=name)


def is_whole(host: Host, name: str, number: int, result: dict[str, Any], conf: dict[str, Any] = CONF, **portmap: Any) -> bool:
    """Return whether CHECK of both plugins succeeds; each difference that it reports is one of rules."""
    replies = [
        host.call(conf["type"], "CHECK", conf, sandbox=Sandbox(name), container_id=name, prev=result),
        host.call(
            "portmap", "CHECK", portmap_conf(conf, number, **portmap), sandbox=Sandbox(name), container_id=name, prev=result
        ),
    ]
    assert all(reply.rc == 0 or reply.code == 103 for reply in replies), replies
    return all(reply.rc == 0 for reply in replies)


def lost(host: Host, **options: Any) -> list[tuple[str, str]]:
    return sorted((one.container_id, one.outcome) for one in host.do(restore.restore, *options.values()))


def owners(host: Host) -> set[str]:
    return {element.container for element in list_elements(host) if element.comment}


# --- what is lost, and which call restores it ---------------------------------------------------------------------------------

DAMAGES = [
    FLUSH,
    "nft delete table inet cni_py",
    "nft delete table bridge cni_py",
    "nft flush map inet cni_py masq4",
    "nft delete element inet cni_py masq6 { fd00:1::2 }",
    "nft flush chain inet cni_py postrouting",
    "nft flush chain inet cni_py beyond-10.0.0.0_8",
    "nft flush map inet cni_py hostports4",
    "nft flush map inet cni_py sources4",
    "nft flush chain inet cni_py hostports4",
    "nft flush set inet cni_py localnet",
    "nft flush set bridge cni_py allowed",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_restores_what_was_deleted(host: Host, damage: str) -> None:
    first, second = attach(host, "c1", 8080), attach(host, "c2", 8081)
    assert lost(host) == []
    before = host.run("nft list ruleset")
    host.run(damage)
    found = lost(host, networks=None, dry_run=True)
    assert found
    assert {outcome for _, outcome in found} == {restore.WOULD_RESTORE}
    assert {outcome for _, outcome in lost(host)} == {restore.RESTORED}
    assert is_whole(host, "c1", 8080, first)
    assert is_whole(host, "c2", 8081, second)
    assert lost(host) == []
    assert sorted(host.run("nft list ruleset").split()) == sorted(before.split())


@pytest.mark.parametrize("conf", [CONF, PTP], ids=["bridge", "ptp"])
@pytest.mark.parametrize("how", ["the next ADD", "GC"])
def test_plugins_restore_what_a_flush_deleted(host: Host, how: str, conf: dict[str, Any]) -> None:
    conf = {key: value for key, value in conf.items() if key != "macspoofchk"}
    result = attach(host, "c1", 8080, conf)
    host.run(FLUSH)
    assert not is_whole(host, "c1", 8080, result, conf), "CHECK reports it"
    if how == "GC":
        host.ok(conf["type"], "GC", conf | {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    else:
        attach(host, "c2", 8081, conf)
    assert is_whole(host, "c1", 8080, result, conf)


def test_flannel_restores_what_a_flush_deleted(host: Host) -> None:
    host.write_subnet_env(DUAL_ENV)
    conf = FLANNEL | {"delegate": {"isDefaultGateway": True, "ipMasq": True}}
    result = host.ok("flannel", "ADD", conf, sandbox=host.netns("c1"))
    host.run(FLUSH)
    host.ok("flannel", "ADD", conf, sandbox=host.netns("c2"), container_id="c2")
    assert host.call("flannel", "CHECK", conf, sandbox=Sandbox("c1"), prev=result).rc == 0


def test_rules_of_iptables_are_restored(host: Host) -> None:
    conf = CONF | {"ipMasqBackend": "iptables"}
    result = attach(host, "c1", 8080, conf, backend="iptables")
    host.run("iptables -t nat -F; ip6tables -t nat -F")
    assert not is_whole(host, "c1", 8080, result, conf, backend="iptables")
    assert lost(host) == [("c1", restore.RESTORED)] * 2
    assert is_whole(host, "c1", 8080, result, conf, backend="iptables")
    assert lost(host) == []


def test_rules_of_the_firewall_plugin_are_restored(host: Host) -> None:
    pod = host.netns("c1")
    result = host.ok("bridge", "ADD", CONF, sandbox=pod)
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"}
    host.ok("firewall", "ADD", conf, sandbox=pod, prev=result)
    assert lost(host) == []
    host.run("nft flush ruleset")
    assert host.call("firewall", "CHECK", conf, sandbox=pod, prev=result).code == 103
    assert ("c1", restore.RESTORED) in lost(host)
    assert host.call("firewall", "CHECK", conf, sandbox=pod, prev=result).rc == 0
    host.ok("firewall", "DEL", conf, sandbox=pod, prev=result)
    assert lost(host) == []


def test_repair_is_a_command(host: Host, cni_py: Path) -> None:
    attach(host, "c1", 8080)
    host.run(FLUSH)
    dry = host.run(f"{cni_py} repair --dry-run")
    assert "would be restored: masquerade of 10.1.0.2, fd00:1::2 of container c1, eth0, network net" in dry
    assert "would be restored: host ports tcp 8080 of container c1" in dry
    assert owners(host) == set()
    assert "no rules are missing" in host.run(f"{cni_py} repair --network other")
    assert host.run(f"{cni_py} repair") == dry.replace("would be restored", "restored")
    assert owners(host) == {"c1"}
    assert host.json(f"{cni_py} repair --json") == {"dryRun": False, "lost": []}


# --- pods that get none ---------------------------------------------------------------------------------------------------


def test_pod_that_is_gone_gets_nothing(host: Host) -> None:
    attach(host, "c1", 8080)
    result = attach(host, "c2", 8081)
    host.delete_netns(Sandbox("c1"))
    host.run(FLUSH)
    assert {container for container, _ in lost(host)} == {"c2"}
    assert owners(host) == {"c2"}
    host.netns("c1")  # another pod's, at the same path
    assert lost(host) == []
    assert is_whole(host, "c2", 8081, result)


def test_pod_that_was_deleted_gets_nothing(host: Host) -> None:
    attach(host, "c1", 8080)
    detach(host, "c1")
    host.run(FLUSH)
    assert lost(host) == []
    assert owners(host) == set()


def test_address_and_port_of_another_attachment_are_left_to_it(host: Host) -> None:
    attach(host, "c1", 8080)
    host.run("nft delete element inet cni_py masq4 { 10.1.0.2 }; nft delete element inet cni_py hostports4 { tcp . 8080 }")
    target = "goto beyond-10.0.0.0_8"
    host.run(f"nft 'add element inet cni_py masq4 {{ 10.1.0.2 comment \"c9 eth0 00000000\" : {target} }}'")
    host.run("nft 'add element inet cni_py hostports4 { tcp . 8080 comment \"c9 eth0 00000000\" : 10.1.0.9 . 80 }'")
    lost(host)
    kept = {(element.set_name, element.container) for element in list_elements(host) if element.key in ("10.1.0.2", "tcp 8080")}
    assert ("masq4", "c9") in kept
    assert ("hostports4", "c9") in kept
    assert ("hostports4", "c1") not in kept


def test_host_port_that_two_want_goes_to_the_newest(host: Host) -> None:
    attach(host, "c1", 8080)
    attach(host, "c2", 8080)
    host.run(FLUSH)
    lost(host)
    assert {element.container for element in list_elements(host, "hostports")} == {"c2"}


@pytest.mark.parametrize("damage", ["[]", "{", '{"containerID":"c1"}', None])
def test_damaged_record_is_no_reason_to_fail(host: Host, damage: str | None) -> None:
    result = attach(host, "c1", 8080)
    attach(host, "c2", 8081)
    for record in host.path("/run/cni-py/attachments").glob("c2:*"):
        record.write_text(
            damage if damage is not None else record.read_text().replace('"addresses":["10.1.0.3/24"', '"addresses":[7')
        )
    host.run(FLUSH)
    lost(host)
    assert is_whole(host, "c1", 8080, result)


CHURN = """
import subprocess, sys, time
from cni_py.sweep import restore
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert all(one.outcome != restore.FAILED for one in restore.restore()), "failed"
"""


def test_delete_at_the_same_time_leaves_nothing(host: Host, longer: int) -> None:
    """A deleted pod has no rule, whatever a flush and a repair do between the steps of its DEL."""
    env = {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    churn = subprocess.Popen(
        host.command(sys.executable, "-c", CHURN, str(3 * longer)), env=env, stderr=subprocess.PIPE, text=True
    )
    rounds = 0
    while churn.poll() is None or rounds < 5:
        name = f"c{rounds}"
        attach(host, name, 8000 + rounds)
        detach(host, name)
        assert name not in owners(host)
        rounds += 1
    assert churn.communicate()[1] == ""
    assert wait_for_end(churn) == 0


def collect_garbage(conf: dict[str, Any]) -> tuple[int, set[tuple[str, str]]]:
    """GC for which no attachment is valid, with a repair after the rules are deleted. Returns: its status; networks and outcomes."""
    outcomes = set()
    forget = attachments.forget_stale

    def repair_and_forget(call: Call) -> None:
        outcomes.update([(one.network, one.outcome) for one in restore.restore()])
        forget(call)

    attachments.forget_stale = repair_and_forget
    call = parse(str(conf["type"]), {"CNI_COMMAND": "GC", "CNI_PATH": "/opt/cni/bin"})
    return engine.handle(call, encode(conf | {"cni.dev/valid-attachments": []}))[0], outcomes


def test_repair_within_a_gc_leaves_its_attachments_to_it(host: Host) -> None:
    attach(host, "c1", 8080)
    attach(host, "c2", 8081, OTHER)
    host.run("nft delete element inet cni_py masq4 '{ 10.2.0.2 }'")
    assert host.do(collect_garbage, portmap_conf(CONF)) == (0, {("net", restore.BUSY), ("other", restore.RESTORED)})
    assert host.do(collect_garbage, CONF) == (0, {("net", restore.BUSY)})
    assert owners(host) == {"c2"}
    assert lost(host) == []


# --- the agent ----------------------------------------------------------------------------------------------------------


def test_agent_restores_within_seconds(host: Host) -> None:
    with Agent(host) as agent:
        first, second = attach(host, "c1", 8080), attach(host, "c2", 8081)
        host.run(FLUSH)
        until(lambda: "restored" in agent.log(), agent.log)
        until(lambda: is_whole(host, "c1", 8080, first) and is_whole(host, "c2", 8081, second), agent.log)
        until(lambda: "they were deleted by nft (process" in agent.log(), agent.log)
        detach(host, "c1")
        detach(host, "c2")
        assert owners(host) == set()
        assert agent.stop() == 0
    assert agent.log().count("restored") == 1, "a DEL of its own is no reason to look"


def restore_after(damage: str) -> tuple[set[str] | None, list[str]]:
    """Do the damage, and what the agent does when it is notified. Returns: the comments it read, the attachments it restored."""
    watch = NftWatch(TABLES, only_deletions_but_by=lambda _: False)
    try:
        subprocess.run(["sh", "-ec", damage], check=True)
        assert watch.wait(20)
    finally:
        watch.close()
    comments = watch.take_comments()
    return comments, [one.container_id for one in restore.restore(comments=comments)]


def test_agent_compares_the_attachments_whose_elements_were_deleted(host: Host) -> None:
    """A DEL without the agent costs it no look at all other pods."""
    attach(host, "c1", 8080)
    attach(host, "c2", 8081)
    for damage in DAMAGES:
        host.do(restore_after, damage)
        assert lost(host) == [], damage
    host.run("nft delete element inet cni_py masq4 '{ 10.1.0.2 }'")  # before it watches
    comments, restored = host.do(restore_after, "nft delete element inet cni_py masq4 '{ 10.1.0.3 }'")
    assert (len(comments or ()), restored) == (1, ["c2"])
    comments, restored = host.do(restore_after, "nft flush chain inet cni_py postrouting")
    assert comments is None
    assert "c1" in restored
    assert lost(host) == []


def test_agent_restores_at_its_start_what_was_deleted_before(host: Host) -> None:
    result = attach(host, "c1", 8080)
    host.run(FLUSH)
    with Agent(host):
        until(lambda: is_whole(host, "c1", 8080, result))


def test_administrator_who_deletes_again_and_again_wins(host: Host) -> None:
    with Agent(host) as agent:
        attach(host, "c1", 8080)

        def flush_again() -> bool:
            if owners(host):
                host.run(FLUSH)
            return "none are restored for 10 min" in agent.log()

        until(flush_again, agent.log)
        until(lambda: "cni-agent --no-repair" in agent.log() and "cni-py repair" in agent.log(), agent.log)
        host.run(FLUSH)
        attach(host, "c2", 8081)  # an ADD restores what it finds missing: the agent is handling it
        assert agent.stop() == 0


def test_agent_without_repair_leaves_what_is_deleted(host: Host) -> None:
    with Agent(host, "--no-repair") as agent:
        attach(host, "c1", 8080)
        host.run("nft flush map inet cni_py masq4")
        assert agent.calls() == 2, "it goes on"
        assert agent.stop() == 0
    assert "masq4" not in {element.set_name for element in list_elements(host)}
    assert "restored" not in agent.log()
