"""The audit's rule about limits: no window was ever above its allowed amount, whatever was changed later.

What must hold:
  An overspend is still named after any change of its budget: a higher limit, a top-up, a pace, an archive. So what a
      budget allowed is read from the log of changes, change by change.
  A limit that is lowered below what is already spent makes no overspend, because the money was spent within the old limit.

How a window is judged. The changes of its budget, and the times at which top-ups begin and end, divide its life into
segments, each with one allowed amount. Calls are replayed in the order of the epochs at which they were admitted, because
that order does not depend on clocks. At the end of each segment the query computes how much was committed: the cost of
the calls that were settled by then, and the holds of the others that were admitted by then. A segment's bound is the
amount that it allowed or the amount that was committed at its end, whichever is less. The amount that is committed now
may not be more than the largest of these bounds, or the amount that is allowed now if that is larger. The same is
checked at the end of each segment, for the cost and the holds of the calls that were admitted until then.

Why this is right: the last hold of a window was made within the allowed amount of some segment, and after that the
committed amount can only fall. For example: the limit is 10, and 7 are committed when it falls to 5. The bounds are
min(10, 7) = 7 and 5. So 7 is right, and 8 would be an overspend although 10 was once allowed. If the limit then rises
to 20, the overspend of 8 is still named, because of the second segment.
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
    describe=lambda row: (
        f"{format_window(row)}: {format_money(row['posted_nano'])} posted and {format_money(row['pending_nano'])} pending "
        f"are more than the {format_money(row['allowed'])} allowed, by "
        f"{format_money(row['posted_nano'] + row['pending_nano'] - row['allowed'])}"
    ),
)
