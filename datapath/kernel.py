"""What a job on the writer's thread can do: attach and detach pods, look at links, ahead of all bulk work.

Each act changes the kernel and the sync state together, so that the next diff finds nothing to do about it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from datapath import attachment as wiring
from datapath import inspection
from datapath.attachment import host_objects, host_objects_of
from datapath.desired import Fragment, Route
from datapath.errors import DatapathError
from datapath.netlink.links import decode_link, get_links
from datapath.nft.hostports import host_port_elements, host_port_sets, read_host_ports
from datapath.nft.policy import closed_fragment
from datapath.nft.tables import pod_sources
from datapath.underlay import read_links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from datapath.attachment import Attached, Attachment, AttachRequest, Detached
    from datapath.desired import Address, FragmentKey
    from datapath.netlink.links import LinkState
    from datapath.nft.hostports import HostPort
    from datapath.sync import Sync
    from datapath.underlay import HostLink

ATTACHMENT = "attachment"


def birth_key(host_link: str) -> FragmentKey:
    """Return the key of what closes a pod from its first packet on; a policy's own fragment outranks it."""
    return ("policy-birth", host_link)


def attachment_key(host_link: str) -> FragmentKey:
    """Return the key of an attachment's fragment."""
    return (ATTACHMENT, host_link)


def attachment_fragment(attachment: Attachment, sources: tuple[Address, ...]) -> Fragment:
    """Return what an attachment wants on the node's side.

    Args:
        attachment: a wired pod.
        sources: the node's address per family, preferred source towards the pod.
    """
    elements = pod_sources(attachment.host_link, attachment.addresses)
    if attachment.ports:
        elements += host_port_elements(attachment.addresses, attachment.ports)
    return Fragment(objects=host_objects(attachment, sources), elements=elements)


def readdressed(sync: Sync, sources: tuple[Address, ...]) -> dict[FragmentKey, Fragment | None]:
    """Return the attachments' fragments that change when the node's addresses are these."""
    by_size = {len(source): source for source in sources}
    changes: dict[FragmentKey, Fragment | None] = {}
    for name, fragment in sync.fragments().items():
        if name[0] != ATTACHMENT:
            continue
        objects = tuple(
            replace(value, source=by_size.get(len(value.destination))) if isinstance(value, Route) else value
            for value in fragment.objects
        )
        if objects != fragment.objects:
            changes[name] = replace(fragment, objects=objects)
    return changes


def _admission(request: AttachRequest) -> Fragment:
    """Return what a pod that is to be attached wants before it can send."""
    elements = pod_sources(request.host_link, request.addresses)
    if request.ports:
        elements += host_port_elements(request.addresses, request.ports)
    return Fragment(elements=elements)


def _whole(admission: Fragment, request: AttachRequest) -> Fragment:
    """Return what it wants once it is attached."""
    objects = host_objects_of(request.host_link, request.addresses, request.sources, request.ports)
    return Fragment(objects=objects, elements=admission.elements)


def _gone(links: Iterable[str]) -> dict[FragmentKey, Fragment | None]:
    """Return the changes that take pods out of the desired state."""
    return dict.fromkeys([make(link) for link in links for make in (attachment_key, birth_key)])


class Kernel:
    """The node's kernel, for jobs of the writer; valid during the job, on its thread.

    What an attachment needs but nobody waits for is left to `settle`, which must come before any other work
    of the thread: the sync state does not know the attachment before.

    Args:
        sync: the sync state.
        doomed: called when there are links for the reaper.
        home: descriptor of the node's namespace, in which the thread is.
    """

    def __init__(self, sync: Sync, doomed: Callable[[], None], home: int | None = None) -> None:
        self._sync = sync
        self._home = home
        self._doomed = doomed
        self._expected: dict[str, Fragment] = {}
        self._attached: dict[FragmentKey, tuple[Fragment, AttachRequest]] = {}
        self._unclosed: list[int] = []

    def expect(self, requests: Sequence[AttachRequest]) -> None:
        """Let pods send that are about to be attached: the elements of all, in one transaction.

        Each of them must then be attached. Where the kernel refuses, `attach` tries again for each alone.
        """
        fragments = {request.host_link: _admission(request) for request in requests}
        try:
            self._admit(fragments, requests)
        except DatapathError:
            self._sync.record(_gone(fragments))
        else:
            self._expected.update(fragments)

    def attach(self, request: AttachRequest) -> Attached:
        """Wire a pod; everything is undone on failure. `settle` has to follow.

        Raises:
            NamespaceError, AttachError: see `datapath.attachment.attach`.
            DatapathError: its elements were refused.
        """
        sync, link = self._sync, request.host_link
        fragment = self._expected.pop(link, None)
        try:
            # Elements before the link: the pod may send as soon as it is up.
            if fragment is None:
                fragment = _admission(request)
                self._admit({link: fragment}, (request,))
            attached = wiring.attach(sync.route, request, home=self._home, close=self._unclosed.append)
        except BaseException:
            # Elements that can't be taken back now are found by the next reading.
            with suppress(DatapathError):
                self._desire_admitted()
                if fragment is not None:
                    sync.record({attachment_key(link): fragment})
                sync.ruleset.apply_now(sync.record(_gone((link,))))
            raise
        sync.indexes[link] = attached.host_index
        self._attached[attachment_key(link)] = fragment, request
        return attached

    def settle(self) -> None:
        """Do what `attach` left: the sync state learns of the attachments, descriptors are closed."""
        self._desire_attached()
        while self._unclosed:
            os.close(self._unclosed.pop())

    def _desire_attached(self) -> None:
        if self._attached:
            attached, self._attached = self._attached, {}
            self._sync.record({key: _whole(*each) for key, each in attached.items()})

    def _desire_admitted(self) -> None:
        """Have desired what the kernel was given in haste: who reads all would delete it."""
        self._desire_attached()
        self._sync.record({attachment_key(link): each for link, each in self._expected.items()})

    def _admit(self, fragments: Mapping[str, Fragment], requests: Sequence[AttachRequest]) -> None:
        if not any(each.closed or each.ports for each in requests):
            # Addresses that are new: nothing has to be compared, and they are desired by `settle`.
            added = [each for fragment in fragments.values() for each in fragment.elements]
            if self._sync.ruleset.add_now(added):
                return
        self._desire_admitted()
        changes: dict[FragmentKey, Fragment | None] = {
            attachment_key(link): fragment for link, fragment in fragments.items()
        }
        for each in requests:
            if each.closed:
                changes[birth_key(each.host_link)] = closed_fragment(each.host_link, each.closed)
        self._sync.ruleset.apply_now(self._sync.record(changes))

    def detach(self, attachment: Attachment) -> Detached:
        """Cut a pod off; only its link's destruction is left for later. Absence is success."""
        self.settle()
        touched = self._sync.record(_gone((attachment.host_link,)))
        detached = wiring.detach(self._sync.route, attachment)
        self._sync.indexes.pop(attachment.host_link, None)
        self._sync.ruleset.apply_now(touched)
        if detached.found:
            self._doomed()
        return detached

    def inspect(self, attachment: Attachment) -> tuple[str, ...]:
        """Return what is wrong with an attachment, in words; nothing when all is well."""
        faults = inspection.inspect(self._sync.route, attachment)
        if attachment.ports:
            faults += inspection.inspect_ports(self._sync.ruleset.elements, attachment)
        return faults

    def host_ports(self) -> dict[Address, tuple[HostPort, ...]]:
        """Return which ports of the node lead to pods, by address of the pod, as nftables has them."""
        elements = self._sync.ruleset.elements
        return read_host_ports({key: elements(key) for key in host_port_sets()})

    def links(self) -> list[LinkState]:
        """Return all links of the node."""
        payloads = self._sync.route.dump(get_links(), "links could not be read")
        return [decode_link(payload) for payload in payloads]

    def underlay(self) -> tuple[HostLink, ...]:
        """Return the links of the machine that are not ours."""
        return read_links(self._sync.route)
