"""Which power action leads a domain to its machine's desired state, when, and when there is none. Pure.

* A domain is powered off only when it has crashed, or libvirt accepted a request to shut down `shutdown_seconds` ago,
  in the same boot of the domain and for the same change of the desired state. What libvirt refused or did not answer,
  and what was not sent, is no request; neither is one of an earlier guestd: nobody knows what happened since.
* Only calls that libvirt accepted count as starts. What failed is tried again with growing delays, and reported.
"""

from __future__ import annotations

from collections.abc import Iterator

from guestd.hypervisor.domains import Domain, derive_status
from guestd.vms.leases import find_obstacle
from guestd.vms.model import (
    Attempts,
    Destroy,
    PowerAction,
    Recheck,
    Resume,
    Shutdown,
    ShutdownRequest,
    Start,
    Suspend,
    VmPolicy,
    VmReport,
    VmRow,
)

MAX_START_ATTEMPTS = 5
FIRST_DELAY_SECONDS = 2.0
MAX_DELAY_SECONDS = 300.0
# What paused a domain that may be resumed. After a failed migration or API call a domain is paused because it may run
# elsewhere, or not at all.
_RESUMABLE = ("user", "from_snapshot")


def plan_power(
    machine: VmRow, domain: Domain, attempts: Attempts | None, now: float, policy: VmPolicy
) -> Iterator[PowerAction | VmReport | Recheck]:
    """Plan one step to the desired state: an action, reports why there is none, or a wait; nothing if it is reached."""
    desired, actual = machine.desired, derive_status(domain)
    if desired is None or actual is None or actual == desired:
        return
    if attempts is not None and (attempts.desired, attempts.desired_since) != (desired, machine.desired_since):
        attempts = None
    asked = None if attempts is None else _find_request(attempts, domain)
    kind, reason = _choose_action(desired, actual, domain, asked, policy)
    if kind is None:
        yield VmReport("cannot", machine.name, reason)
        return
    if kind is Start:
        obstacle = find_obstacle(machine, domain, now, policy)
        if obstacle is not None:
            yield obstacle
            return
    left = 0.0 if asked is None or kind is not Destroy else asked.at + policy.shutdown_seconds - now
    if attempts is not None:
        if attempts.failed and attempts.action == kind.__name__:
            text = f"{attempts.action.lower()} failed: {attempts.error}; guestd tries again, at least every 5 minutes"
            yield VmReport("failing", machine.name, text)
        if kind is Start and attempts.action == Start.__name__ and attempts.accepted >= MAX_START_ATTEMPTS:
            count = attempts.accepted
            text = f"started {count} times, never ran for 10 minutes; fix the guest, then set desiredStatus again"
            yield VmReport("left", machine.name, text)
            return
        left = max(left, attempts.at + _get_delay_seconds(attempts, policy) - now)
    if left > 0:
        yield Recheck(left)
        return
    yield kind(
        machine.id, machine.name, domain.uuid, desired, reason, domain.state, domain.boot, machine.desired_since
    )  # fmt: skip


def record_accepted(before: Attempts | None, action: PowerAction, now: float) -> Attempts:
    """Add an action that libvirt accepted to a machine's attempts."""
    same = _keep_same(before, action)
    count = same.accepted if same is not None and same.action == type(action).__name__ else 0
    asked = None if same is None else same.asked
    if isinstance(action, Shutdown):
        asked = ShutdownRequest(action.boot, now)
    return Attempts(action.desired, action.desired_since, type(action).__name__, count + 1, 0, now, None, asked)


def record_failed(before: Attempts | None, action: PowerAction, error: str, now: float) -> Attempts:
    """Add an action that libvirt refused or did not answer to a machine's attempts."""
    same, name = _keep_same(before, action), type(action).__name__
    accepted, failed = (same.accepted, same.failed) if same is not None and same.action == name else (0, 0)
    asked = None if same is None else same.asked
    return Attempts(action.desired, action.desired_since, name, accepted, failed + 1, now, error, asked)


def _keep_same(before: Attempts | None, action: PowerAction) -> Attempts | None:
    """Keep the attempts for the same change of the desired state."""
    if before is None or (before.desired, before.desired_since) != (action.desired, action.desired_since):
        return None
    return before


def _find_request(attempts: Attempts, domain: Domain) -> ShutdownRequest | None:
    """Find the request to shut down that counts for a domain: it has run without interruption since."""
    asked = attempts.asked
    return asked if asked is not None and asked.boot == domain.boot and domain.since <= asked.at else None


def _choose_action(
    desired: str, actual: str, domain: Domain, asked: ShutdownRequest | None, policy: VmPolicy
) -> tuple[type[PowerAction] | None, str]:
    """Choose the action and its reason; None and the reason if there is no suitable action."""
    is_resumable = domain.state == "paused" and domain.reason in _RESUMABLE
    has_crashed = "crashed" in (domain.state, domain.reason)
    step: tuple[type[PowerAction] | None, str]
    match desired, actual:
        case "running", "off":
            step = Start, "off, desired state is running"
        case "running", "suspended" if is_resumable:
            step = Resume, "suspended, desired state is running"
        case "suspended", "running":
            step = Suspend, "running, desired state is suspended"
        case "off", "running" if asked is not None and policy.may_destroy:
            step = Destroy, "the guest did not shut down in time"
        case "off", "running":
            step = Shutdown, "running, desired state is off"
        case "off", "suspended" if is_resumable:
            step = Resume, "suspended, desired state is off; it must run to shut down"
        case "off", "error" if has_crashed and policy.may_destroy:
            step = Destroy, f"{domain.state} ({domain.reason}), desired state is off"
        case _:
            step = None, f"{domain.state} ({domain.reason}), desired state is {desired}: needs manual action"
    return step


def _get_delay_seconds(attempts: Attempts, policy: VmPolicy) -> float:
    """Get the delay between the last attempt and the next: exponential, and at least a shutdown's time after one."""
    delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (attempts.accepted + attempts.failed - 1))
    is_asked = attempts.action == Shutdown.__name__ and not attempts.failed
    return max(delay, policy.shutdown_seconds) if is_asked else delay
