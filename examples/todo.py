"""A to-do list on all of a person's devices, in the terminal. Start `twinlock dev` first, then:

    python examples/todo.py add "buy milk"
    python examples/todo.py list
    python examples/todo.py done milk
    python examples/todo.py watch

It works without the server too; what is written then is sent the next time there is one. One profile is open in one
process at a time: TWINLOCK_PROFILE names another.
"""

import asyncio
import sys

import msgspec

import twinlock


class Todo(msgspec.Struct):
    """One thing to do."""

    text: str
    done: bool = False


def show(todo: Todo) -> None:
    print(f"[{'x' if todo.done else ' '}] {todo.text}", flush=True)


async def add(todos: twinlock.Collection[Todo], text: str) -> None:
    await todos.add(Todo(text))


async def done(todos: twinlock.Collection[Todo], words: str) -> None:
    for doc in await todos.where("done", "==", False).search(words).get():
        await todos.doc(doc.id).update({"done": True})
        show(Todo(doc["text"], done=True))


async def list_all(todos: twinlock.Collection[Todo]) -> None:
    for doc in await todos.order_by("done").order_by("text").get():
        show(doc.value)


async def watch(todos: twinlock.Collection[Todo]) -> None:
    async for snap in todos.watch():
        for change in snap.changes:
            print(change.kind, end=" ")
            show(change.doc.value)


async def main(command: str = "list", *words: str) -> None:
    async with await twinlock.connect() as db:
        todos = db.space("home").collection("todos", Todo)
        match command:
            case "add":
                await add(todos, " ".join(words))
            case "done":
                await done(todos, " ".join(words))
            case "watch":
                await watch(todos)
            case _:
                await list_all(todos)
        if db.status == "connected":
            await db.synced()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
