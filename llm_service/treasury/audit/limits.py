"""What the audit asks of limits: that no window was ever over what was allowed, whatever was changed afterwards.

What must hold: an overspend stays named after any change of its budget: a higher limit, a top-up, a pace, an archive. So
what a budget allowed is read from the log of changes, change by change. A limit that falls below what is spent makes no
overspend: what was there then, within the old limit, is allowed for.

How a window is judged. The changes of its budget, and the times at which top-ups begin and end, cut its life into
segments, each with one allowed amount. Calls are replayed in the order of the epochs that they were admitted by, which
clocks that jump do not upset. At the end of each segment stands how much was committed: what calls that were admitted by
then held, or had cost if they had been settled. The bound of a segment is the lesser of what it allowed and what was
committed at its end; what is committed now may not be more than the largest of these bounds, nor than what is allowed now.
The same is asked at the end of each segment, of what the calls that were admitted until then have cost, or still hold.

Why: the last hold of a window was made within some segment's allowance, and what is committed only shrinks after it.
An example: of a limit of 10, 7 are committed when it falls to 5. The bounds are min(10, 7) = 7 and 5: 7 is right, and 8
is an overspend, although 10 was once allowed. If the limit then rises to 20, the 8 is still named, by the second segment.
"""

from __future__ import annotations

from llm_service.treasury.audit.rule import Rule, format_money, format_window
from llm_service.treasury.queries import load_query

WITHIN_LIMITS = Rule(
    name="spend_within_limits",
    invariant="I1",
    holds="in every window, posted + pending is, and at every change was, within the limit and its top-ups",
    examines="windows",
    differences=load_query("audit/spend_within_limits"),
    say=lambda row: (
        f"{format_window(row)}: {format_money(row['posted_nano'])} posted and {format_money(row['pending_nano'])} pending "
        f"are more than the {format_money(row['allowed'])} allowed, by "
        f"{format_money(row['posted_nano'] + row['pending_nano'] - row['allowed'])}"
    ),
)
