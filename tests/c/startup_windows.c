/* Stands in for what mingw links into every program, which zig would build for a minute. It is for linking alone: nothing runs
   what comes of it. Whatever else a program calls must be found in Windows' own libraries. */
#include <stddef.h>

#ifndef _WIN32
#error for Windows only
#endif

unsigned long _tls_index;

void __main(void);
void ___chkstk_ms(void);
int __mingw_printf(const char *format, ...);
int __mingw_fprintf(void *file, const char *format, ...);
int __mingw_snprintf(char *text, size_t size, const char *format, ...);

void __main(void) {}
void ___chkstk_ms(void) {}
int __mingw_printf(const char *format, ...) { return !format; }
int __mingw_fprintf(void *file, const char *format, ...) { return !file || !format; }
int __mingw_snprintf(char *text, size_t size, const char *format, ...) { return !text || !size || !format; }
