"""What NetworkPolicies mean, sentence by sentence, and what shows each on the kernel, in both families.

A name with blanks is a story (of `policies` or `policy_surroundings`), which the tracer is told as well; the
others are tests of tests/functional. All of it together with random clusters is compared with the oracle in
tests/property/policy and tests/functional/policy.
"""

from __future__ import annotations

MEANINGS: dict[str, tuple[str, ...]] = {
    "Isolation is per pod and direction; without types it is of ingress, and of egress if that has rules": (
        "isolation is by pod and direction",
        "test_a_policy_without_rules_closes_the_pods_that_it_selects_and_no_others",
    ),
    "A flow needs egress of its source and ingress of its destination": (
        "a flow needs egress of its source and ingress of its destination",
    ),
    "An empty or null list of rules denies all, a rule {} allows all; no peers or no ports are any": (
        "an empty ingress denies all, an empty rule allows all",
    ),
    "A podSelector that is null or {} selects all pods of the namespace": (
        "an empty or absent podSelector is all pods of the namespace",
    ),
    "podSelector: the policy's namespace; namespaceSelector: all its pods; in one item both; items: any": (
        "peers by podSelector and namespaceSelector",
    ),
    "In, NotIn (also of who lacks the key), Exists, DoesNotExist": ("matchExpressions",),
    "ipBlock: an exception is no denial, pods are addresses too, 0.0.0.0/0 is not IPv6, host bits": (
        "ipBlock",
    ),
    "Addresses and ports are those at the pod: after a Service has chosen, before masquerade": (
        "egress is matched behind the Service",
        "ingress by a Service is matched at the pod",
    ),
    "A named port is the destination's, by protocol, for egress and sidecars too; unknown: nothing": (
        "a named port is what the destination calls so",
    ),
    "A port without number is all of its protocol, without protocol TCP; endPort is in; SCTP is SCTP": (
        "ports by number and protocol",
    ),
    "Pods in their node's network are no subjects, and selectors do not mean them": (
        "pods in their node's network are no subjects and no peers",
    ),
    "A node reaches its own pods under default-deny": (
        "a node reaches its own pods under default-deny",
        "test_the_node_reaches_its_own_pods",
    ),
    "Another node is policed as an address, and through the overlay counts as itself": (
        "another node is an address, also through the overlay",
    ),
    "A pod reaches its own node as its egress allows": ("a pod reaches its own node as egress allows",),
    "A pod reaches itself by its own address and by its own Service": (
        "a pod reaches itself whatever policies say, Cluster",
        "a pod reaches itself whatever policies say, Local",
        "test_a_pod_reaches_itself_by_its_own_address",
        "test_a_pod_reaches_itself_by_its_own_service_whatever_policies_say",
    ),
    "Replies pass, and errors about what is allowed (path MTU)": (
        "isolation is by pod and direction",
        "test_an_isolated_pod_learns_it_too",
    ),
    "Echo requests and protocols without ports are allowed by rules without ports only": (
        "test_ping_and_other_protocols_match_only_rules_without_ports",
    ),
    "Neighbour discovery is never denied": ("test_a_closed_pod_discovers_its_gateway",),
    "From outside, policy Local keeps the client's address, Cluster shows the node of the entrance": (
        "policy Local keeps the client's address",
        "policy Cluster shows the node where the client came in",
    ),
    "A pod that has ended is neither subject nor peer, and its address may be another's": (
        "a pod that has ended is no peer, and its address is another's",
        "test_a_pod_that_has_ended_is_no_subject",
    ),
    "A terminating pod is both": ("a terminating pod is subject and peer",),
    "Labels of pods and namespaces count at once, of subjects and of peers": (
        "labels of a pod count at once",
        "labels of a namespace count at once",
        "test_a_relabelled_peer_is_let_in_and_shut_out_at_once",
    ),
    "An update that comes while another is applied is not lost": (
        "test_changes_that_come_while_others_are_applied_are_not_lost",
    ),
    "Without its last policy a pod is open again": ("the last policy of several opens the pod again",),
    "Policies hold while the daemon is away, and a restart reconciles": (
        "test_policies_hold_while_the_daemon_is_away",
        "test_a_policy_that_came_while_the_daemon_was_away_is_in_force_at_its_return",
        "test_a_restart_shuts_out_nobody_who_is_let_in",
    ),
    "A pod is closed from its first packet on": ("test_pods_are_closed_from_their_first_packet_on",),
}
