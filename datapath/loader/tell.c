/* SPDX-License-Identifier: Apache-2.0 */

/* stderr goes nowhere once OVS is a daemon. */

#include "tell.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <syslog.h>

#include <rte_log.h>

typedef int rte_log_fn(uint32_t level, uint32_t type, const char *fmt, ...);

bool tell_switch_log;

void tell(int priority, const char *fmt, ...)
{
    rte_log_fn *log = tell_switch_log ? (rte_log_fn *)dlsym(RTLD_DEFAULT, "rte_log") : NULL;
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "libmoat: %s\n", text);
    syslog(LOG_DAEMON | priority, "libmoat: %s", text);
    if (log)
        log((uint32_t)priority + 1, RTE_LOGTYPE_USER1, "libmoat: %s\n", text);
}
