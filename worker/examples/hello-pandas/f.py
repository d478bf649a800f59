"""Daily totals and a linear trend of some sales: a handler that needs numpy and pandas, slow to import."""

import numpy as np
import pandas as pd

_SALES = [
    {"day": "2026-01-05", "item": "tea", "amount": 12.0},
    {"day": "2026-01-05", "item": "coffee", "amount": 8.5},
    {"day": "2026-01-06", "item": "tea", "amount": 15.0},
    {"day": "2026-01-07", "item": "coffee", "amount": 21.5},
]


def f(event):
    """Return the totals by day and by item of `event["sales"]`, and by how much the daily total grows a day."""
    table = pd.DataFrame(event.get("sales") or _SALES)
    days = table.groupby("day")["amount"].sum()
    growth = float(np.polyfit(np.arange(len(days)), days.to_numpy(), 1)[0]) if len(days) > 1 else 0.0
    return {
        "hello": event.get("name", "world"),
        "by_day": days.to_dict(),
        "by_item": table.groupby("item")["amount"].sum().to_dict(),
        "growth": round(growth, 3),
        "versions": {"numpy": np.__version__, "pandas": pd.__version__},
    }
