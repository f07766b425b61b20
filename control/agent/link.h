/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_LINK_H
#define MOAT_AGENT_LINK_H 1

/* The kernel's links, by netlink; this file is the sole user of libnl.
 *
 * It keeps the taps (kind "tun") of this network namespace.  Only a tap that a
 * caller names is ever changed. */

#include <stdbool.h>

struct shash;

struct link_tap {
    int ifindex;
    bool up; /* administratively */
};

/* 0 or negative errno: then there are no links, and each run tries again. */
int link_init(void);
void link_run(void);
void link_wait(void);
void link_exit(void);

unsigned link_seqno(void); /* changes with the contents */
const struct shash *link_taps(void); /* name -> struct link_tap */

/* Sets a tap's link down.  0 or negative errno. */
int link_set_down(const char *name);

#endif /* link.h */
