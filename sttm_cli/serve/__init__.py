"""The resident server, and the light client that finds it.

Server: `process` (sockets, signals) runs `app` (routes) over `engine` (queue, threads, model);
`chat` reads and writes the OpenAI protocol, `videos` turns a part's address into a local file.
Client: `address` says where a server of one's own would be, `client` talks to it; neither imports
torch, transformers or numpy.
"""
