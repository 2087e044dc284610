insert into outcome_policies (outcome, status, free_times, backoff, backoff_cap, cools, cool_steps, meaning) values
('completed', 'completed', 0, '0', '0', null, default, 'done'),
('failed', 'queued', 0, '5 seconds', '1 hour', null, default, 'the tool said that it failed'),
('rate_limited', 'queued', null, '0', '0', 'account', default, 'too many requests for this account'),
('quota_exhausted', 'queued', null, '0', '0', 'account', default, 'the account''s allowance is used up'),
('overloaded', 'queued', 50, '0', '0', 'provider', '{1 minute,3 minutes,10 minutes}', 'the provider is too busy'),
('unauthenticated', 'queued', null, '0', '0', 'login', default, 'the login on that host does not work'),
('network', 'queued', 50, '0', '0', 'runner', '{15 seconds,1 minute,5 minutes}', 'the provider could not be reached'),
('context_overflow', 'queued', 0, '0', '0', null, default, 'the conversation outgrew the model'),
('session_lost', 'queued', 2, '0', '0', null, default, 'the session to resume is gone'),
('permission_denied', 'failed', 0, '0', '0', null, default, 'a needed permission is missing; no retry can change that'),
('turn_limit', 'queued', 0, '0', '0', null, default, 'the agent used up its turns'),
('timed_out', 'queued', 0, '10 seconds', '1 hour', null, default, 'the wall clock ran out'),
('stalled', 'queued', 0, '10 seconds', '1 hour', null, default, 'no output for too long'),
('crashed', 'queued', 2, '0', '0', null, default, 'the tool or its runner died; twice per task costs nothing, then it counts, so that a task that kills its hosts comes to an end'),
('verify_failed', 'queued', 0, '0', '0', null, default, 'the proof of done did not hold'),
('cancelled', 'cancelled', null, '0', '0', null, default, 'stopped on request'),
('waiting', 'waiting', null, '0', '0', null, default, 'waits for a human, children or mail'),
('handed_off', 'waiting', null, '0', '0', null, default, 'another agent goes on, and the task ends as that one does'),
('unknown', 'queued', 0, '30 seconds', '1 hour', null, default, 'ended in a way that nobody could read');

insert into scopes (name, may_read, may_write, may_execute, may_network, may_create_child, max_depth, max_spawns_per_minute)
values ('default', true, true, true, true, true, 10, 60);
comment on column scopes.parent is 'Null only for the root, default.';

insert into providers (name, adapter) values
('command', 'command'),
('claude', 'claude'),
('codex', 'codex'),
('gemini', 'gemini'),
('opencode', 'opencode'),
('local', 'openai');

insert into agents (name, description, route, command, system_prompt, timeout) values
('default', 'What a task without an agent gets: the first of these tools that some runner has.', '{claude,codex,gemini,opencode:coder}', null, null, default),
('claude', 'Claude Code: writes and runs code, reads large repositories.', '{claude}', null, null, default),
('codex', 'Codex: writes and runs code.', '{codex}', null, null, default),
('gemini', 'Gemini CLI: writes and runs code, reads very long documents.', '{gemini}', null, null, default),
('opencode', 'A local model with tools: reads and writes files at no cost.', '{opencode:coder}', null, null, default),
('local', 'A local model without tools: answers short questions about the text that it is given.', '{local:coder}', null, null, default),
('shell', 'Runs the prompt as a shell script in the runner''s sandbox.', '{command}', '{sh,-s}', null, default),
(
    'auto', 'Chooses the agent: first by routing_rules, then by the orchestrator model, else the agent default.', '{local:orchestrator}', null,
    'You route tasks to agents. Answer with the one agent that suits the task best.', '1 minute'
),
(
    'summary', 'Sums up work so far for whoever takes it over; used by handoffs.', '{local:orchestrator}', null,
    'Sum up the work on a task for the agent who takes it over: what was done, what was found, what is left. At most 300 words.', '1 minute'
);
update agents
set output_schema = '{"type": "object", "additionalProperties": false, "required": ["summary"], "properties": {"summary": {"type": "string"}}}'
where name = 'summary';
insert into push_secret default values;
insert into retention (what, keep, archive) values
('completed', '60 days', true),
('cancelled', '60 days', true),
('failed', '120 days', true),
('archive', '2 years', false),
('transcript', '90 days', false),
('events', '180 days', false);
