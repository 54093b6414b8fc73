"""The import doctor: whether a weight file is read as it was trained, judged by labelled images.

Keys and shapes cannot tell everything: v1 and v1.5 bottlenecks, the paddings of shortcut A,
colours in another order, other values, another epsilon all load without an error and are wrong.
A `Reading` is one way to read a file. Readings are searched, first all together on few images,
then trait by trait on more, and compared by what each says of the same labelled images.

The measure is the cross-entropy at the temperature that suits each reading best: a reading must
not win by making an over-confident network less sure, as a larger epsilon or less contrast does.
Differences are paired by image and come with a bootstrap interval (Efron & Tibshirani 1993,
chapter 13) and, for accuracy, with the exact sign test. What the file declares, or Skipway assumed,
stands unless another reading is better beyond doubt and by an amount that matters.
"""

from skipway.doctor.diagnosis import Diagnosis, check, correct
from skipway.doctor.evidence import Comparison, Finding, Outcome

__all__ = ["Comparison", "Diagnosis", "Finding", "Outcome", "check", "correct"]
