insert into outcome_policies (outcome, status, free_times, backoff, backoff_cap, cools, meaning) values
('completed', 'completed', 0, '0', '0', null, 'done'),
('failed', 'queued', 0, '5 seconds', '1 hour', null, 'the tool said that it failed'),
('rate_limited', 'queued', null, '0', '0', 'account', 'too many requests for this account'),
('quota_exhausted', 'queued', null, '0', '0', 'account', 'the account''s allowance is used up'),
('overloaded', 'queued', null, '30 seconds', '10 minutes', null, 'the provider is too busy'),
('unauthenticated', 'queued', null, '0', '0', 'account', 'the login on that host does not work'),
('network', 'queued', null, '15 seconds', '10 minutes', null, 'the provider could not be reached'),
('context_overflow', 'queued', 0, '0', '0', null, 'the conversation outgrew the model'),
('session_lost', 'queued', 2, '0', '0', null, 'the session to resume is gone'),
('permission_denied', 'failed', 0, '0', '0', null, 'a needed permission is missing; no retry can change that'),
('turn_limit', 'queued', 0, '0', '0', null, 'the agent used up its turns'),
('timed_out', 'queued', 0, '10 seconds', '1 hour', null, 'the wall clock ran out'),
('stalled', 'queued', 0, '10 seconds', '1 hour', null, 'no output for too long'),
('crashed', 'queued', 2, '0', '0', null, 'the tool or its runner died; twice per task costs nothing, then it counts, so that a task that kills its hosts comes to an end'),
('verify_failed', 'queued', 0, '0', '0', null, 'the proof of done did not hold'),
('cancelled', 'cancelled', null, '0', '0', null, 'stopped on request'),
('waiting', 'waiting', null, '0', '0', null, 'waits for a human, children or mail'),
('handed_off', 'completed', null, '0', '0', null, 'another agent goes on'),
('unknown', 'queued', 0, '30 seconds', '1 hour', null, 'ended in a way that nobody could read');

insert into scopes (name, may_read, may_write, may_execute, may_network, may_create_child)
values ('default', true, true, true, true, true);
comment on column scopes.parent is 'Null only for the root, default.';

insert into providers (name, adapter) values ('command', 'command');

insert into agents (name, description, route, command) values
('default', 'What a task without an agent gets. Give it a route to choose what that is.', '{}', null),
('shell', 'Runs the prompt as a shell script on the runner''s host, as the runner''s user.', '{command}', '{sh,-s}');
