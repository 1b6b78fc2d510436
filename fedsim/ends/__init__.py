"""The two ends of a deployed federation, which exchange nothing but frames; how these travel is the caller's business.

A round of the server (S) and each client (C) of its cohort, whatever lies between them:

     1  S  call(client)        a frame headed by the server's end of the link: the whole MODEL, or the missed UPDATES
     2  C  hear(frame)         settle: keep the pending state or roll it back; then take or replay the model
     3  C  answer()            solve, upload; memory row, error row and solver notes are pending and on disk when the
     4                         UPLOAD leaves (in the first round perhaps after a MEMORY)
     5  S  absorb(replies)     guard; memories, average, step; a client without an accepted reply was absent

A client whose state is not the one that the server's end speaks of (its folder was wiped, or restored from an old copy)
answers with an empty REFRESH frame. ``wants`` notes it, and the next ``call`` (in the same round if the caller likes,
else in the client's next one) brings the model, if this round's first frame was not one, and the client's MEMORY. Error
rows and solver notes exist only at the client: after a refresh they start afresh.
"""
