"""The part of Taskyard that runs on the machine: server, agents, terminal."""
