/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_EVENT_H
#define MOAT_DP_EVENT_H 1

/* Ring of events from all threads to the control thread (ring.h).  Posting never waits,
 * takes no lock and makes no system call unless `urgent`; when it is full the event is
 * lost and counted. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/ctl.h"

#include "ring.h"

struct moat_events {
    struct moat_ring ring;
    int wake_fd; /* eventfd: readable after an urgent event */
};

int moat_events_init(struct moat_events *, uint32_t size); /* a power of two */
void moat_events_destroy(struct moat_events *);

/* Any thread.  Copies *ev and sets seq and time_us.  False if it was lost.
 * Urgent: wakes the control thread (a system call: never on the packet path). */
bool moat_event_post(struct moat_events *, const struct moat_event *ev, bool urgent);

/* The same with the time that it has, of an event that another queue has given up. */
bool moat_event_put(struct moat_events *, const struct moat_event *ev);

/* Control thread.  False if there is none. */
bool moat_event_take(struct moat_events *, struct moat_event *out);

#endif /* datapath/event.h */
