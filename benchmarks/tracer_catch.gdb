# A backtrace at every mmap and munmap, and on. Nothing is written into the process: syscalls are caught by ptrace.
set pagination off
set backtrace past-main on
catch syscall mmap munmap
commands
silent
bt
continue
end
continue
