"""The words of the scripted writer: what may stand in each place of an answer.

`{f}` is a factor with its figure inside a sentence ("your debt ratio of 61%"), `{F}` the same at
its start, `{S}` a factor as a clause ("Your debt ratio stands at 61%"), `{N}` its name alone and
`{t}` its figure apart ("at 61%"); `{g}`, `{m}` and `{u}` are a second factor's. `{r}` is the
rating, `{a}` an action, `{label}` a field's name. Verbs that follow a factor are in the past
tense, since a factor may be one thing ("debt ratio") or many ("late payments").

No phrase names a rating by itself, holds a digit, or names a field outside of its own entry.
"""

GREETINGS: dict[str, tuple[str, ...]] = {
    "poor": (
        "Thank you for applying.",
        "We know that this is not what you hoped for.",
        "We have looked at your application with care.",
        "Here is why we decided as we did.",
        "Let us explain our answer.",
        "Thank you for your patience.",
        "We want to be open with you.",
    ),
    "normal": (
        "Thank you for applying.",
        "We have finished our review.",
        "Here is how we see your application.",
        "Let us explain our answer.",
        "Thanks for your interest in our card.",
        "The review of your form is done.",
        "There is light and shade here.",
    ),
    "good": (
        "Thank you for applying.",
        "We are happy to write to you.",
        "Thanks for your interest in our card.",
        "Here is a pleasant letter.",
        "The review of your form is done.",
        "We liked what we saw.",
        "This was an easy review.",
    ),
}
RATING_LEADS = (
    "After review, ",
    "All in all, ",
    "On the whole, ",
    "Taken together, ",
    "As things stand, ",
    "For now, ",
    "With everything in view, ",
)
RATING_SUBJECTS = (
    "your application",
    "your card application",
    "your request",
    "your credit profile",
    "your file",
)
RATING_VERBS = (
    "was rated {r}",
    "is rated {r}",
    "received a {r} rating",
    "earned a {r} rating",
    "ends with a {r} rating",
    "comes out as {r}",
    "falls in the {r} group",
    "gets a {r} rating",
)
RATING_WHOLE = (
    "The rating of your application is {r}.",
    "We rated your application {r}.",
    "The model rates your file {r}.",
    "Our rating for you is {r}.",
)

# A factor with its figure; a count cannot be said as "of 4". A stray comma is cleaned up later.
MEASURED = (
    "your {label} of {figure}",
    "your {label}, at {figure},",
    "your {label}, which is {figure},",
)
COUNTED = (
    "your {label}, {figure} in all,",
    "your {label}, {figure} on record,",
    "your {label}, {figure} so far,",
)
MEASURED_TAIL = ("at {figure}", "with {figure}", "standing at {figure}")
COUNTED_TAIL = ("with {figure} in all", "with {figure} on record", "with {figure} so far")
MEASURED_CLAUSE = ("your {label} is {figure}", "your {label} stands at {figure}")
COUNTED_CLAUSE = ("your {label} come to {figure}", "your {label} add up to {figure}")

LEAD: dict[bool, tuple[str, ...]] = {  # by whether the factor helped
    False: (
        "{N} hurt the rating most, {t}.",
        "{N} hurt more than anything else, {t}.",
        "{N} hurt the most here, {t}.",
        "{F} pulled the rating down the most.",
        "{F} weighed most, and not in your favour.",
        "{S}, and that hurt the rating most.",
        "What hurt most was {f}.",
        "{N} hurt above all, {t}.",
    ),
    True: (
        "{N} helped the rating most, {t}.",
        "{N} helped more than anything else, {t}.",
        "{N} helped the most here, {t}.",
        "{F} did the most to lift the rating.",
        "{F} weighed most, and in your favour.",
        "{S}, and that helped the rating most.",
        "What helped most was {f}.",
        "{N} helped above all, {t}.",
    ),
}
SAME: dict[bool, tuple[str, ...]] = {  # another factor of the same direction
    False: (
        "{N} hurt as well, {t}.",
        "{N} hurt too, {t}.",
        "{N} hurt on top of that, {t}.",
        "{F} also counted against you.",
        "{S}, which hurt as well.",
        "Another weak point is {f}.",
    ),
    True: (
        "{N} helped as well, {t}.",
        "{N} helped too, {t}.",
        "{N} helped on top of that, {t}.",
        "{F} also counted in your favour.",
        "{S}, which helped as well.",
        "Another strong point is {f}.",
    ),
}
TURN: dict[bool, tuple[str, ...]] = {  # a factor of the other direction
    False: (
        "{N} hurt, on the other hand, {t}.",
        "{N} hurt the rating, however, {t}.",
        "{N} hurt a little in return, {t}.",
        "Against that, {f} counted against you.",
        "{S}, though, and that hurt.",
        "A weak point is {f}.",
    ),
    True: (
        "{N} helped, on the other hand, {t}.",
        "{N} helped the rating, however, {t}.",
        "{N} helped a little in return, {t}.",
        "Against that, {f} counted in your favour.",
        "{S}, though, and that helped.",
        "A strong point is {f}.",
    ),
}
PAIR: dict[tuple[bool, bool], tuple[str, ...]] = {  # two factors in one sentence
    (False, False): (
        "{N} hurt too, {t}, and so did {g}.",
        "{F} and {g} counted against you too.",
        "Both {f} and {g} hurt as well.",
    ),
    (True, True): (
        "{N} helped too, {t}, and so did {g}.",
        "{F} and {g} counted in your favour too.",
        "Both {f} and {g} helped as well.",
    ),
    (True, False): (
        "{N} helped, {t}, while {m} hurt, {u}.",
        "{N} helped, {t}, but {m} hurt, {u}.",
        "{F} spoke for you, but {g} counted against you.",
    ),
    (False, True): (
        "{N} hurt, {t}, while {m} helped, {u}.",
        "{N} hurt, {t}, but {m} helped, {u}.",
        "{F} counted against you, but {g} spoke for you.",
    ),
}

ADVICE = (  # the field is named again, so that what follows can lean on it
    "To improve the rating, begin with your {label}: {a}.",
    "The best next step concerns your {label}: {a}.",
    "Work on your {label} first: {a}.",
    "Our advice is about your {label}: {a}.",
    "There is a way up through your {label}: {a}.",
    "As for your {label}, {a}.",
    "What would help most has to do with your {label}: {a}.",
)
KEEP = (
    "To stay there, mind your {label}: {a}.",
    "Our advice is simple, and about your {label}: {a}.",
    "As for your {label}, {a}.",
    "From here on, look after your {label}: {a}.",
    "What to hold on to is your {label}: {a}.",
)
MENDS: dict[str, tuple[str, ...]] = {  # field key -> what to do where it hurt
    "credit_score": (
        "pay each bill on time so that the score can recover",
        "keep every account up to date for some months",
        "look for mistakes in your credit report and have them corrected",
    ),
    "income": (
        "send us proof of any other earnings",
        "apply again when your income has grown",
        "add a second earner to the application",
    ),
    "utilisation": (
        "pay down the balances on your cards",
        "bring card balances well below what is allowed",
        "use less of the credit that you have",
    ),
    "late_payments": (
        "set up automatic payments so that nothing is late again",
        "pay every bill by its due date",
        "clear what is overdue and stay on time",
    ),
    "debt_ratio": (
        "pay off part of your loans",
        "bring your monthly debts down",
        "close a loan before you take on another",
    ),
    "account_age": (
        "keep your oldest account open and in use",
        "give your accounts time to grow older",
        "stay with the bank accounts that you have",
    ),
    "inquiries": (
        "wait some months before you ask another lender",
        "ask for credit less often",
        "let a quiet half year pass without new requests",
    ),
    "job_tenure": (
        "stay with your employer for longer",
        "apply again after more time in the same job",
        "build up more time at your work",
    ),
    "cards": (
        "close a card that you do not use",
        "manage with fewer cards",
        "give back the cards that lie idle",
    ),
    "limit": (
        "ask for a smaller limit",
        "start with a lower limit and raise it later",
        "choose a card with a lower limit",
    ),
}
KEEPS: dict[str, tuple[str, ...]] = {  # field key -> what to go on doing where all helped
    "credit_score": ("go on paying every bill on time", "keep every account up to date"),
    "income": ("tell us when your income changes", "keep your earnings steady"),
    "utilisation": ("keep card balances low", "go on using little of your credit"),
    "late_payments": ("go on paying on time", "keep every bill on schedule"),
    "debt_ratio": ("keep your monthly debts small", "take on new loans with care"),
    "account_age": ("keep your oldest account open", "keep your accounts in use"),
    "inquiries": ("go on asking for credit only when you need it", "ask lenders rarely"),
    "job_tenure": ("keep your steady work", "go on as you do at work"),
    "cards": ("keep to the cards that you have", "open no card that you do not need"),
    "limit": ("keep your requests modest", "stay with a limit that suits you"),
}
CLOSINGS = (
    "You are welcome to apply again later.",
    "We will be glad to look at it again.",
    "Please tell us if anything here looks wrong.",
    "Call us if you have questions.",
    "Thank you for your trust.",
    "We are here to help.",
)
