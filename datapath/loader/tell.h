/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_LOADER_TELL_H
#define MOAT_LOADER_TELL_H 1

/* What the loader says: to stderr, to syslog, and, from the time on when DPDK is up, to the
 * switch's own log. */

#include <stdbool.h>

extern bool tell_switch_log; /* DPDK is up */

/* priority: LOG_ERR and so on. */
void tell(int priority, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif /* datapath/loader/tell.h */
