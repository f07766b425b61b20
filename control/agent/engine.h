/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_ENGINE_H
#define MOAT_AGENT_ENGINE_H 1

/* The fast path as the agent sees it: two connections (requests, events), made
 * again when lost, and a copy of the lists of slots and ports.  An engine that takes over from
 * another in the same process is the same fast path: it was never away. */

#include <stdbool.h>
#include <stddef.h>

#include "ctl_client.h"

typedef void engine_event_fn(const struct moat_event *);

void engine_init(const char *path, engine_event_fn *);
/* Connects, delivers events, refreshes the lists if something has happened.
 * Events that lead to a list are always delivered before that list is seen. */
void engine_run(void);
void engine_wait(void);
void engine_exit(void);

bool engine_up(void);
unsigned
engine_generation(void); /* counts connections: a change means that it was away or replaced */
struct moat_ctl *engine_ctl(void); /* NULL if it is not up */
const char *engine_error(void);
void engine_touch(void);   /* the lists are stale: we changed something */
void engine_refresh(void); /* ... and are needed now */

const struct moat_slot_info *engine_slot(const char *vnic); /* NULL: none */
const struct moat_slot_info *engine_slot_of_path(const char *path);
size_t engine_slots(const struct moat_slot_info **);
size_t engine_ports(const struct moat_port_info **);

#endif /* engine.h */
