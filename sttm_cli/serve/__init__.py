"""The server, and the light client that finds it.

Server, from the outside in: `process` (sockets, signals, the end) runs `app` over `connections`
(their bounds). `app` joins `openai_routes` and `private_routes` over `service` (the checks they
share) and `streaming` (responses that end with their client). Requests: `request_body` (bounds,
pydantic, refusals), `openai_request`, `openai_reply`, `http_errors`. Videos: `videos` opens them
with `downloads` and `public_internet`. Work: `engine` (queue, threads, model) answers each `job`,
with `batch` (questions decoded together) and `metrics`; `options` are the server's own.

Client: `server_files` names the files by which a server is found, `client` asks it,
`local_servers` lists, stops and starts servers; `http_errors` has the form of a refusal. None of
these imports torch, transformers, numpy or pydantic.
"""
