"""Runs the real commands in child processes that can be struck at any point.

Owns the processes, and the names of the messages between them: `H in: announce copied` is the
sender's announcement on the side export as it reaches the receiver, `H in: state copied` the
receiver's state as it reaches the sender, `M out: FLUSH` a request on the main export. The product
has no switches for this: it is given file-system calls (L{tests.proof.volatile}) and endpoints to
use, and the launcher gives it its own. Everything else (options, operations, logging, reactor, exit
status) is what `blockmig` itself does in `cli.launch`.

Rules:

* children are forked by a process that never imported the reactor and has no other thread;
* messages are recognised in the stream, and given to the program one by one: a point before a
  message lies before its first byte was given to the transport, or its last to the protocol; the
  point after it once the kernel has all of it, or the protocol has acted on it;
* on the wires C{tcp} and C{unix} the transport is the real one, so that payloads go by sendfile and
  splice past the protocol; on C{wrapped} it is a stranger to blockmig, and all goes through memory;
* a child ends when its harness does.

A server that mirrors its disk is struck at its messages to the destination and at its calls into
the kernel; the names of its points begin with what the mirror was doing: `pass 2: `, `hold: `. Its
clients' connections have no points. It can also have its mirror broken off at a point: that is a
strike of the kind C{break}, and it reports C{broken} or C{too-late}.

From the bottom up: C{messages} finds where messages end; C{watched} makes them points;
C{mirror_points} is for a server's mirror; C{commands} runs a command; C{child} is the process.
"""
