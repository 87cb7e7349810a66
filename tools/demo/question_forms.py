"""Questions about a table or a link between two, each in several phrasings.

In the SQL a slot is a name or a quoted literal. In a question ``{where}``, ``{more}`` and similar slots are phrases of
the column, containing the literal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One kind of question.

    Attributes:
        name: Part of the template's id.
        about: What it needs: ``table`` or ``link``, and with a plus the columns: ``text``, ``number``.
        sql: The query.
        asks: Its phrasings.
        titled: The requested rows need a column that names them.
    """

    name: str
    about: str
    sql: str
    asks: tuple[str, ...]
    titled: bool = True


_JOIN = "{c} JOIN {p} ON {c}.{key} = {p}.id"

FORMS = (
    Form(
        "list",
        "table",
        "SELECT {title} FROM {t}",
        (
            "List the {title}s of all {many}.",
            "What are the {title}s of the {many}?",
            "Show the {title} of every {one}.",
        ),
    ),
    Form(
        "count",
        "table",
        "SELECT count(*) FROM {t}",
        ("How many {many} are there?", "Count the {many}.", "What is the total number of {many}?"),
        titled=False,
    ),
    Form(
        "filter",
        "table+text",
        "SELECT {title} FROM {t} WHERE {text} = {v}",
        (
            "List the {title}s of the {many} {where}.",
            "Which {many} {where} are there? Give their {title}s.",
            "What are the {title}s of all {many} {where}?",
            "Show me the {title} of each of the {many} {where}.",
        ),
    ),
    Form(
        "count-filter",
        "table+text",
        "SELECT count(*) FROM {t} WHERE {text} = {v}",
        ("How many {many} {where} are there?", "Count the {many} {where}.", "What is the number of {many} {where}?"),
        titled=False,
    ),
    Form(
        "distinct",
        "table+text",
        "SELECT DISTINCT {text} FROM {t}",
        (
            "Which different values of {text_words} occur among the {many}?",
            "List each {text_words} of the {many} once.",
            "What are the distinct values of {text_words} in the {many}?",
        ),
        titled=False,
    ),
    Form(
        "count-by",
        "table+text",
        "SELECT {text}, count(*) FROM {t} GROUP BY {text}",
        (
            "How many {many} are there for each {text_words}?",
            "Give the number of {many} by {text_words}.",
            "For every {text_words}, count the {many}.",
        ),
        titled=False,
    ),
    Form(
        "commonest",
        "table+text",
        "SELECT {text} FROM {t} GROUP BY {text} ORDER BY count(*) DESC LIMIT 1",
        (
            "What is the most common {text_words} among the {many}?",
            "Which {text_words} do most of the {many} have?",
            "Which {text_words} occurs most often in the {many}?",
        ),
        titled=False,
    ),
    Form(
        "having",
        "table+text",
        "SELECT {text} FROM {t} GROUP BY {text} HAVING count(*) > {h}",
        (
            "Which values of {text_words} are shared by more than {h} {many}?",
            "For which {text_words} are there more than {h} {many}?",
        ),
        titled=False,
    ),
    Form(
        "more",
        "table+number",
        "SELECT {title} FROM {t} WHERE {number} > {n}",
        (
            "List the {title}s of the {many} {more}.",
            "Which {many} {more} are there?",
            "Find the {title}s of all {many} {more}.",
        ),
    ),
    Form(
        "less",
        "table+number",
        "SELECT {title} FROM {t} WHERE {number} < {n}",
        (
            "List the {title}s of the {many} {less}.",
            "Which {many} {less} are there?",
            "Find the {title}s of all {many} {less}.",
        ),
    ),
    Form(
        "count-more",
        "table+number",
        "SELECT count(*) FROM {t} WHERE {number} > {n}",
        ("How many {many} {more} are there?", "Count the {many} {more}."),
        titled=False,
    ),
    Form(
        "average",
        "table+number",
        "SELECT avg({number}) FROM {t}",
        ("What is the average {words} of the {many}?", "Give the mean {words} over all {many}."),
        titled=False,
    ),
    Form(
        "extremes",
        "table+number",
        "SELECT min({number}), max({number}) FROM {t}",
        (
            "What are the lowest and the highest {words} among the {many}?",
            "Give the minimum and maximum {words} of the {many}.",
        ),
        titled=False,
    ),
    Form(
        "most",
        "table+number",
        "SELECT {title} FROM {t} ORDER BY {number} DESC LIMIT 1",
        ("What is the {title} of the {one} {most}?", "Name the {one} {most}.", "Find the {one} {most}."),
    ),
    Form(
        "least",
        "table+number",
        "SELECT {title} FROM {t} ORDER BY {number} LIMIT 1",
        ("What is the {title} of the {one} {least}?", "Name the {one} {least}.", "Find the {one} {least}."),
    ),
    Form(
        "top",
        "table+number",
        "SELECT {title}, {number} FROM {t} ORDER BY {number} DESC LIMIT {k}",
        (
            "Give the {title} and {words} of the {k} {many} that come first by {words}, highest first.",
            "Which {k} {many} have the highest {words}? Show {title} and {words}, in descending order.",
        ),
    ),
    Form(
        "order",
        "table+number",
        "SELECT {title}, {number} FROM {t} ORDER BY {number}",
        (
            "List {title} and {words} of all {many}, sorted by {words} from low to high.",
            "Show the {title} and the {words} of every {one} in ascending order of {words}.",
        ),
    ),
    Form(
        "above-average",
        "table+number",
        "SELECT {title} FROM {t} WHERE {number} > (SELECT avg({number}) FROM {t})",
        (
            "Which {many} are above the average in {words}?",
            "List the {title}s of the {many} whose {words} is greater than the average {words}.",
        ),
    ),
    Form(
        "between",
        "table+number",
        "SELECT {title} FROM {t} WHERE {number} BETWEEN {n} AND {n2}",
        (
            "List the {title}s of the {many} whose {words} is between {n} and {n2}.",
            "Which {many} lie from {n} to {n2} in {words}?",
        ),
    ),
    Form(
        "both",
        "table+text+number",
        "SELECT {title} FROM {t} WHERE {text} = {v} AND {number} > {n}",
        (
            "List the {title}s of the {many} {where} {more}.",
            "Find the {many} {where} {more}.",
            "Which {many} {where} {more} are there?",
        ),
    ),
    Form(
        "average-filter",
        "table+text+number",
        "SELECT avg({number}) FROM {t} WHERE {text} = {v}",
        ("What is the average {words} of the {many} {where}?", "Give the mean {words} of all {many} {where}."),
        titled=False,
    ),
    Form(
        "average-by",
        "table+text+number",
        "SELECT {text}, avg({number}) FROM {t} GROUP BY {text}",
        (
            "What is the average {words} of the {many} for each {text_words}?",
            "For every {text_words}, give the mean {words} of the {many}.",
            "Show each {text_words} with the average {words} of its {many}.",
        ),
        titled=False,
    ),
    Form(
        "most-filter",
        "table+text+number",
        "SELECT {title} FROM {t} WHERE {text} = {v} ORDER BY {number} DESC LIMIT 1",
        ("Of the {many} {where}, name the one {most}.", "Among the {many} {where}, which is the one {most}?"),
    ),
    Form(
        "of",
        "link",
        f"SELECT {{c}}.{{title}} FROM {_JOIN} WHERE {{p}}.{{ptitle}} = {{pv}}",
        (
            "List the {title}s of the {many} {of}.",
            "What are the {title}s of all {many} {of}?",
            "Which {many} {of} are there?",
        ),
    ),
    Form(
        "count-of",
        "link",
        f"SELECT count(*) FROM {_JOIN} WHERE {{p}}.{{ptitle}} = {{pv}}",
        ("How many {many} {of} are there?", "Count the {many} {of}.", "Give the number of {many} {of}."),
        titled=False,
    ),
    Form(
        "count-each",
        "link",
        f"SELECT {{p}}.{{ptitle}}, count(*) FROM {_JOIN} GROUP BY {{p}}.id",
        (
            "For each {pone} with any {one}, give the {ptitle} and the number of {many}.",
            "How many {many} does each {pone} have? Show the {ptitle} and the count, leaving out those with none.",
        ),
        titled=False,
    ),
    Form(
        "most-children",
        "link",
        f"SELECT {{p}}.{{ptitle}} FROM {_JOIN} GROUP BY {{p}}.id ORDER BY count(*) DESC LIMIT 1",
        ("Which {pone} has the most {many}?", "What is the {ptitle} of the {pone} with the largest number of {many}?"),
        titled=False,
    ),
    Form(
        "having-children",
        "link",
        f"SELECT {{p}}.{{ptitle}} FROM {_JOIN} GROUP BY {{p}}.id HAVING count(*) > {{h}}",
        (
            "List the {ptitle}s of the {pmany} {have_many}.",
            "Find all {pmany} {have_many}.",
            "Name the {pmany} {have_many}.",
        ),
        titled=False,
    ),
    Form(
        "none",
        "link",
        "SELECT {ptitle} FROM {p} WHERE id NOT IN (SELECT {key} FROM {c})",
        (
            "List the {ptitle}s of the {pmany} {lack}.",
            "Find all {pmany} {lack}.",
            "Are there {pmany} {lack}? Give their {ptitle}s.",
        ),
        titled=False,
    ),
    Form(
        "of-where",
        "link+text",
        f"SELECT {{c}}.{{title}} FROM {_JOIN} WHERE {{p}}.{{text}} = {{v}}",
        (
            "List the {title}s of the {many} {of_where}.",
            "Which {many} {of_where} are there?",
            "Find all {many} {of_where}.",
        ),
    ),
    Form(
        "count-of-where",
        "link+text",
        f"SELECT count(*) FROM {_JOIN} WHERE {{p}}.{{text}} = {{v}}",
        ("How many {many} {of_where} are there?", "Count the {many} {of_where}."),
        titled=False,
    ),
    Form(
        "count-by-parent",
        "link+text",
        f"SELECT {{p}}.{{text}}, count(*) FROM {_JOIN} GROUP BY {{p}}.{{text}}",
        (
            "How many {many} are there for each {text_words} of the {pone}?",
            "Count the {many} by {text_words} of the {pone}.",
        ),
        titled=False,
    ),
    Form(
        "average-of-where",
        "link+text+number",
        f"SELECT avg({{c}}.{{number}}) FROM {_JOIN} WHERE {{p}}.{{text}} = {{v}}",
        ("What is the average {words} of the {many} {of_where}?", "Give the mean {words} of all {many} {of_where}."),
        titled=False,
    ),
    Form(
        "with-child",
        "link+number",
        f"SELECT DISTINCT {{p}}.{{ptitle}} FROM {_JOIN} WHERE {{c}}.{{number}} > {{n}}",
        (
            "List the {ptitle}s of the {pmany} {have_more}.",
            "Find the {pmany} {have_more}.",
            "Name all {pmany} {have_more}.",
        ),
        titled=False,
    ),
    Form(
        "highest-each",
        "link+number",
        f"SELECT {{p}}.{{ptitle}}, max({{c}}.{{number}}) FROM {_JOIN} GROUP BY {{p}}.id",
        (
            "For each {pone} with any {one}, show the {ptitle} and the highest {words} of the {many}.",
            "Give every {pone}'s {ptitle} with the maximum {words} among the {many} that belong to it.",
        ),
        titled=False,
    ),
)
