"""Makes docs/sql.md, the reference of the schema, from the catalog's own comments: make reference."""

from psycopg import Connection
from psycopg.rows import DictRow

HEAD = """\
# SQL reference

From the comments in the catalog; `\\d+ tasks` and `\\df+ submit_task` say the same in psql. What begins with an
underscore is the yard's own. Errors: [errors.md](errors.md).

"""


def reference(db: Connection[DictRow]) -> str:
    """The page for the yard of this connection."""
    parts = [HEAD, "## Functions\n\n"]
    parts += [_function(row) for row in db.execute(FUNCTIONS)]
    for title, kinds in (("Tables", "rp"), ("Views", "v")):
        parts.append(f"## {title}\n\n")
        for relation in db.execute(RELATIONS, [list(kinds)]).fetchall():
            parts.append(f"### {relation['name']}\n\n{_text(relation['comment'])}\n\n")
            columns = db.execute(COLUMNS, [relation["oid"]]).fetchall()
            parts.append("| column | type | |\n|---|---|---|\n")
            parts += [f"| {row['name']} | {row['type']} | {_cell(row['comment'])} |\n" for row in columns]
            parts.append("\n")
    return "".join(parts).rstrip() + "\n"


FUNCTIONS = """
    select p.proname::text as name, pg_get_function_arguments(p.oid) as arguments,
        pg_get_function_result(p.oid) as result, obj_description(p.oid, 'pg_proc') as comment
    from pg_catalog.pg_proc p
    where p.pronamespace = 'taskyard'::regnamespace and p.proname not like '\\_%' and p.prorettype <> 'trigger'::regtype
    order by 1, 2
"""
RELATIONS = """
    select c.oid, c.relname::text as name, obj_description(c.oid, 'pg_class') as comment
    from pg_catalog.pg_class c
    where c.relnamespace = 'taskyard'::regnamespace and c.relkind::text = any(%s) and not c.relispartition
    order by 2
"""
COLUMNS = """
    select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type,
        col_description(a.attrelid, a.attnum) as comment
    from pg_catalog.pg_attribute a
    where a.attrelid = %s and a.attnum > 0 and not a.attisdropped
    order by a.attnum
"""


def _function(row: DictRow) -> str:
    arguments = ",\n    ".join(_split(row["arguments"]))
    call = f"{row['name']}(\n    {arguments}\n)" if len(row["arguments"]) > 80 else f"{row['name']}({row['arguments']})"
    return f"### {row['name']}\n\n```text\n{call}\n-> {row['result']}\n```\n\n{_text(row['comment'])}\n\n"


def _split(arguments: str) -> list[str]:
    """At the commas that are in no bracket and no quotes."""
    parts, depth, quoted = [""], 0, False
    for character in arguments:
        quoted ^= character == "'"
        depth += (character in "([{") - (character in ")]}") if not quoted else 0
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _text(comment: str | None) -> str:
    return (comment or "").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _cell(comment: str | None) -> str:
    return _text(comment).replace("|", "\\|").replace("\n", " ")
