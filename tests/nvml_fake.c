// Stands in for libnvidia-ml.so.1. FAKE_NVML chooses the fault: gb10, mig, lost, mismatch, nodriver, nokernel.
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
typedef void* dev;
static int is(const char*m){const char*e=getenv("FAKE_NVML");return e&&strcmp(e,m)==0;}
int nvmlInitWithFlags(unsigned f){ return is("mismatch")?18:(is("nodriver")?9:(is("nokernel")?999:0)); }
int nvmlInit_v2(void){return nvmlInitWithFlags(0);}
int nvmlShutdown(void){return 0;}
const char* nvmlErrorString(int r){switch(r){case 3:return "Not Supported";case 4:return "Insufficient Permissions";case 9:return "Driver Not Loaded";case 15:return "GPU is lost";case 18:return "RM has detected an NVML/RM version mismatch.";}return "Unknown Error";}
int nvmlSystemGetDriverVersion(char*b,unsigned n){strncpy(b,"580.95.05",n);return 0;}
int nvmlDeviceGetCount_v2(unsigned*c){*c=is("two")||is("lost")?2:1;return 0;}
int nvmlDeviceGetHandleByIndex_v2(unsigned i,dev*d){ if(is("lost")&&i==1) return 15; *d=(dev)(long)(i+1);return 0;}
int nvmlDeviceGetUUID(dev d,char*b,unsigned n){snprintf(b,n,"GPU-0000000%ld-0000-0000-0000-000000000000",(long)d);return 0;}
int nvmlDeviceGetName(dev d,char*b,unsigned n){const char*s=is("gb10")?"NVIDIA GB10":is("mig")?"NVIDIA H100 80GB HBM3":((long)d==1?"NVIDIA GeForce RTX 3060":"NVIDIA GeForce RTX 4090");strncpy(b,s,n);return 0;}
typedef struct{unsigned long long total,free_,used;}mem;
int nvmlDeviceGetMemoryInfo(dev d,mem*m){ if(is("gb10"))return 3; if(is("mig"))return 4; m->total=((long)d==1?12ULL:24ULL)<<30;m->used=1ULL<<29;m->free_=m->total-m->used;return 0;}
int nvmlDeviceGetMemoryInfo_v2(dev d,void*m){return 3;}
int nvmlDeviceGetCudaComputeCapability(dev d,int*a,int*b){*a=8;*b=6;return 0;}
int nvmlDeviceGetMemoryBusWidth(dev d,unsigned*w){return 3;}
int nvmlDeviceGetMaxClockInfo(dev d,int t,unsigned*c){return 3;}
int nvmlDeviceGetComputeRunningProcesses_v3(dev d,unsigned*c,void*p){*c=0;return 0;}
int nvmlDeviceGetComputeRunningProcesses_v2(dev d,unsigned*c,void*p){*c=0;return 0;}
int nvmlSystemGetProcessName(unsigned p,char*b,unsigned n){return 4;}
